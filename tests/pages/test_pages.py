"""Pages: what others wrote is shown and not obeyed, one file without network or script, sections as a page and in Markdown."""

import pytest
from seen import HOSTILE, TURNED, Seen

from dfdc_ray import pages
from dfdc_ray.pages import MOST_ROWS, Section, Share, Table

PAGE = """
{% extends "base.html" %}{% import "parts.html" as parts %}
{% block body %}{{ parts.tile(title, [title]) }}{% for section in sections %}{{ parts.section(section) }}{% endfor %}
{{ parts.picture(picture, title, title) }}{% endblock %}
"""


def _page(*sections: Section, title: str = "t", picture: bytes = b"\x89PNG") -> Seen:
    template = pages._environment().from_string(PAGE)
    return Seen(template.render(title=title, made_from=title, sections=sections, picture=picture))


def test_what_others_wrote_is_shown_and_not_obeyed() -> None:
    rows = [[HOSTILE, HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], Share(1, 3)]]
    seen = _page(Section(HOSTILE, [HOSTILE, Table([HOSTILE] * 5, rows, names=[0, 1], texts=[2])]), title=HOSTILE)
    seen.check()
    assert seen.text.count(HOSTILE) == 1 + 2 + 2 + 5 + 5 + 1  # title; tile; heading and paragraph; header; row; caption
    assert HOSTILE in [attributes.get("alt") for _, attributes in seen.tags]


def test_names_are_kept_apart_from_what_is_around_them() -> None:
    seen = _page(Section("t", [Table(["a", "b", "c"], [[TURNED, "1", TURNED]], names=[0, 2])]))
    assert seen.html.count(f"<bdi>{TURNED}</bdi>") == 2


def test_what_is_no_unicode_does_no_harm() -> None:
    page = pages.render("coverage.html", title="\ud800", made_from="m", out="\ud800", how="", tiles=[], sections=[], chapters=[])
    assert "Coverage of <bdi>?</bdi>" in page.decode()


def test_a_long_table_is_cut_and_says_so() -> None:
    seen = _page(Section("t", [Table(["n"], [[str(n)] for n in range(MOST_ROWS + 1234)])]))
    assert len([tag for tag, _ in seen.tags if tag == "td"]) == MOST_ROWS
    assert "And 1,234 more lines" in seen.text


def test_a_section_in_markdown() -> None:
    section = Section("Faces", ["First.", Table(["what", "n"], [["a | b", "1"]]), "Last."])
    assert section.markdown() == "## Faces\n\nFirst.\n\n| what | n |\n| --- | --- |\n| a \\| b | 1 |\n\nLast.\n"


@pytest.mark.parametrize(
    ("part", "whole", "words"), [(0, 9, "0.0%"), (9, 9, "100.0%"), (1, 9999, "<0.1%"), (9998, 9999, ">99.9%"), (1, 3, "33.3%"), (0, 0, "-")]
)
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int, words: str) -> None:
    assert pages.percent(part, whole) == words
    assert words in _page(Section("t", [Table(["a"], [[Share(part, whole, count=False)]])])).html.replace("&lt;", "<").replace("&gt;", ">")


def test_bars_end_where_the_share_does() -> None:
    shares = [Share(0, 4), Share(1, 4, cls="fake"), Share(9, 4), Share(0, 0)]
    seen = _page(Section("t", [Table(["a"], [[share] for share in shares])]))
    assert seen.all("i", "style") == ["width:0.0%", "width:25.0%", "width:100.0%"]
    assert seen.all("i", "class")[1] == "fake"


def test_pictures_are_within_the_page() -> None:
    assert _page(picture=b"\x89PNGx").all("img", "src") == ["data:image/png;base64,iVBOR3g="]
    assert _page(picture=b"\xff\xd8").all("img", "src") == ["data:image/jpeg;base64,/9g="]
