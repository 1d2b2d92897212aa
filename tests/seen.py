"""What a browser makes of a page: its tags with their attributes, its text, and whatever it would ask the network or a script for."""

import re
from html.parser import HTMLParser

HOSTILE = '<script>alert(1)</script> <img src=x onerror=alert(2)> "quoted" &amp;.mp4'
TURNED = "\u202efdp.exe"  # written from right to left
_TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "h4", "p", "bdi", "div", "b", "span", "i", "table", "thead",
    "tbody", "tr", "th", "td", "ul", "li", "figure", "img", "figcaption", "a", "svg", "g", "line", "circle", "text", "polyline", "dl",
    "dt", "dd", "details", "summary",
}  # fmt: skip
_ATTRIBUTES = {
    "lang", "charset", "name", "content", "http-equiv", "class", "style", "alt", "src", "scope", "tabindex", "role", "aria-label",
    "href", "viewbox", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "points",
}  # fmt: skip


class Seen(HTMLParser):
    """tags: (name, attributes) in their order; text: between them, style sheets left out."""

    def __init__(self, html: str | bytes) -> None:
        super().__init__()
        self.html = html if isinstance(html, str) else html.decode()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] != "style":
            self.text += data

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return re.sub(r"\s+", " ", self.text)

    def all(self, tag: str, attribute: str) -> list[str]:
        """This attribute of every such tag that has it."""
        return [value for name, attributes in self.tags if name == tag and (value := attributes.get(attribute)) is not None]

    def check(self) -> None:
        """One file: no script, nothing from elsewhere, and no tag or attribute that the templates do not use."""
        assert "default-src 'none'" in self.html
        assert {tag for tag, _ in self.tags} <= _TAGS
        assert {name for _, attributes in self.tags for name in attributes} <= _ATTRIBUTES
        assert all(src.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for src in self.all("img", "src"))
        assert all(alt.strip() for alt in self.all("img", "alt"))
        assert not any(re.match(r"[a-zA-Z][\w+.-]*:|//", href) for href in self.all("a", "href"))  # relative ones only
        styles = re.findall(r"<style>(.*?)</style>", self.html, re.S) + [a["style"] or "" for _, a in self.tags if "style" in a]
        assert not re.search(r"url\(|@import", " ".join(styles))
