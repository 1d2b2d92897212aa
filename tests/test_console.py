"""What a person sees while something runs."""

import io

from rich.console import Console

from dfdc_ray.console import Work, printable


def test_progress_fits_a_terminal_of_80_columns():
    screen = io.StringIO()
    with Work(
        "preprocess", total=119_154, unit="videos", to=Console(file=screen, width=80, force_terminal=True, color_system=None)
    ) as work:
        work.advance(57_450, detail="1234567 faces, 1230 videos without, 11 units not done")
    last = screen.getvalue()[-400:]
    assert " 57450/119154 " in last
    assert "videos/s" in last
    assert "  1234567 faces, 1230 videos without, 11 units not done" in last
    assert "…" not in last


def test_names_of_others_are_shown_as_they_are_but_for_what_a_terminal_would_obey():
    assert printable("Aufnahme 3.45\u202fPM\xa0'x'.mov") == "Aufnahme 3.45\u202fPM\xa0'x'.mov"
    assert printable("a\x1b[2J\u202e\n.mp4") == "a\\x1b[2J\\u202e\\n.mp4"
