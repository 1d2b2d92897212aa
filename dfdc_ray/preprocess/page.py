"""An HTML page in one file: no script, no network, light and dark, readable on a telephone. Text is escaped wherever it comes from.

Pieces are `Html`; any other value that is put into one is shown as the text that it is.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from string import Template

# Real, fake and neither: Okabe and Ito's palette, which colour-blind readers can tell apart; the charts of evaluate use it too.
COLOURS = {"REAL": "real", "FAKE": "fake"}

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="made-from" content="$made_from">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1b1f24; --quiet: #5c6570; --line: #dde1e6; --bar: #b9c3cf;
  --real: #0072b2; --fake: #d55e00; --good: #3b8f6a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --card: #1d2126; --ink: #e6e9ed; --quiet: #9aa4af; --line: #313840; --bar: #4a5561;
    --real: #56b4e9; --fake: #e69f00; --good: #58b48c; --bad: #ff8a80; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0 .8rem; max-width: 62rem; }
.quiet, caption, figcaption { color: var(--quiet); }
.bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 650; }
.tile span { display: block; color: var(--quiet); font-size: .87rem; }
.scroll { overflow-x: auto; margin: .6rem 0 1.4rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .28rem .55rem; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
th { font-weight: 600; color: var(--quiet); vertical-align: bottom; white-space: normal; min-width: 4.2rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; min-width: 9rem; max-width: 22rem; white-space: normal;
  overflow-wrap: anywhere; position: sticky; left: 0; background: var(--paper); }
td.text { text-align: left; white-space: normal; min-width: 14rem; max-width: 34rem; overflow-wrap: anywhere; }
th.text { text-align: left; }
.bar { display: inline-block; width: 4rem; height: .6rem; margin-left: .5rem; border-radius: .15rem; background: var(--line);
  vertical-align: baseline; }
.bar i { display: block; height: 100%; border-radius: inherit; background: var(--bar); }
.bar i.real { background: var(--real); } .bar i.fake { background: var(--fake); } .bar i.good { background: var(--good); }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1rem; margin: .8rem 0 1.6rem; }
.case { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; min-width: 0; }
.case p { margin: .1rem 0 .6rem; font-size: .88rem; }
.frames { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; max-height: 14rem; object-fit: contain; background: #000; border-radius: .3rem; }
figcaption { font-size: .8rem; }
ul { padding-left: 1.2rem; margin: .3rem 0; } li { overflow-wrap: anywhere; }
@media (max-width: 36rem) { .bar { width: 2.5rem; } th:first-child, td:first-child { min-width: 6.5rem; }
  figure img { max-height: 9rem; } main { padding-top: 1rem; } }
@media print { .case { break-inside: avoid; } }
"""


class Html(str):
    """Markup that is ready, made by the functions here."""

    __slots__ = ()


def text(value: object) -> Html:
    """The value as it is read: markup in it is shown, not obeyed, and it cannot turn the direction of what follows."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value).encode("utf-8", "replace").decode()))


def join(pieces: Iterable[object]) -> Html:
    """One after the other."""
    return Html("".join(text(piece) for piece in pieces))


def element(tag: str, *content: object, cls: str = "") -> Html:
    """<tag class="cls">content</tag>"""
    attribute = f' class="{cls}"' if cls else ""
    return Html(f"<{tag}{attribute}>{join(content)}</{tag}>")


def name(value: object) -> Html:
    """A name that somebody else chose, kept apart from what is around it (also where it is written from right to left)."""
    return element("bdi", value)


def tile(number: str, *below: str) -> Html:
    """One figure, large, and what it is."""
    return element("div", element("b", number), *(element("span", line) for line in below), cls="tile")


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, texts: Sequence[int] = ()) -> Html:
    """A table; its first column and those of `texts` (by position) are words, the others numbers."""
    cls = ["text" if i in texts else "" for i in range(len(header))]
    head = join(element("th", h, cls=c) for h, c in zip(header, cls, strict=True))
    body = join(element("tr", *(element("td", v, cls=c) for v, c in zip(row, cls, strict=True))) for row in rows)
    return element("div", element("table", element("thead", element("tr", head)), element("tbody", body)), cls="scroll")


def share(part: float, whole: float, *, cls: str = "", count: bool = True) -> Html:
    """`12 (3.4%)` and a bar; `-` where there is nothing to take a share of."""
    if not whole:
        return Html("-")
    words = (f"{part:,} ({percent(part, whole)})" if part else "0") if count else percent(part, whole)
    return join([words, Html(f'<span class="bar"><i class="{cls}" style="width:{min(max(part / whole, 0), 1):.1%}"></i></span>')])


def percent(part: float, whole: float) -> str:
    """`3.4%`; never 0 % for something, nor 100 % for less than all."""
    if not whole:
        return "-"
    if 0 < part / whole < 0.0005:
        return "<0.1%"
    if 0.9995 <= part / whole < 1:
        return ">99.9%"
    return f"{part / whole:.1%}"


def picture(jpeg: bytes, *, alt: str, caption: str) -> Html:
    """A JPEG within the page."""
    data = base64.b64encode(jpeg).decode()
    image = Html(f'<img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{data}">')
    return element("figure", image, element("figcaption", caption))


def page(title: str, body: Iterable[object], *, made_from: str) -> bytes:
    """The whole file. made_from: stands in its head, for `made_from_of`."""
    values = {"title": text(title), "style": _STYLE, "body": "\n".join(map(text, body)), "made_from": html.escape(made_from)}
    return _PAGE.substitute(values).encode()
