"""What a person sees while something runs."""

import io

from rich.console import Console

from dfdc_ray.console import Work


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
