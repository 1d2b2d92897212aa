"""HTML pages in one file each: no script, no network, light and dark, readable on a telephone and in print.

`render("coverage.html", ...)` fills a template of this folder (Jinja2). Whatever is put in is shown as the text that it is; markup is made
by templates alone. `base.html` is the frame of every page, `parts.html` has the pieces: tiles, sections, tables, pictures, bars.
"""

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from dfdc_ray.console import markdown_table

MOST_ROWS = 1000  # of a table on a page


@dataclass(frozen=True)
class Share:
    """A cell: `12 (3.4%)` and a bar; `-` where there is nothing to take a share of. cls: real, fake or good. count: say the part too."""

    part: float
    whole: float
    cls: str = ""
    count: bool = True


Cell = str | Share | list[tuple[str, str]]  # the last: names, and what is said of each


@dataclass(frozen=True)
class Table:
    """Rows under a header. Columns (by position) are numbers, but for `texts`, and for the first and `names`, which others chose."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: Sequence[int] = ()
    texts: Sequence[int] = ()


@dataclass(frozen=True)
class Section:
    """A title, and below it paragraphs and tables in their order: of a page, or of a report in Markdown."""

    title: str
    body: Sequence[str | Table]

    def markdown(self) -> str:
        """The same in Markdown; cells must be words."""
        parts = [part + "\n" if isinstance(part, str) else markdown_table(part.header, part.rows) for part in self.body]  # type: ignore[arg-type]
        return "\n".join([f"## {self.title}\n", *parts])


def markdown(title: str, warnings: Sequence[str], parts: Sequence[Section | str]) -> str:
    """A report in Markdown: its title, what must be known first, and sections or lines of Markdown."""
    head = [f"# {title}\n", *(f"> **{warning}**\n" for warning in warnings)]
    return "\n".join([*head, *(part.markdown() if isinstance(part, Section) else part + "\n" for part in parts)])


def render(template: str, /, **values: object) -> bytes:
    """The whole page. base.html wants title, and made_from (what the page was made from, for who would make it again)."""
    return _environment().get_template(template).render(**values).encode("utf-8", "replace")


def percent(part: float, whole: float) -> str:
    """`3.4%`; never 0 % for something, nor 100 % for less than all."""
    if not whole:
        return "-"
    if 0 < part / whole < 0.0005:
        return "<0.1%"
    if 0.9995 <= part / whole < 1:
        return ">99.9%"
    return f"{part / whole:.1%}"


def data_uri(picture: bytes) -> str:
    """A PNG or JPEG as it stands within a page."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dfdc_ray.pages", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = data_uri
    environment.tests["share"] = lambda value: isinstance(value, Share)
    environment.globals |= {"percent": percent, "MOST_ROWS": MOST_ROWS}
    return environment
