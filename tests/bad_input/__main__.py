"""The table of bad input, as Markdown, from what becomes of every case: `python -m tests.bad_input > table.md`"""

import sys
import tempfile
from pathlib import Path

import pytest

from . import files, odd_videos, poison, zips
from .case import Case, Outcome, run, stop_workers

SECTIONS = {
    "Bad videos": odd_videos.BAD,
    "Poison": poison.CASES,
    "Tables, files and folders": files.CASES,
    "Zips": zips.CASES,
    "Odd, and no error": odd_videos.ODD,
}


def main() -> None:
    """Run every case and print a row for each."""
    for title, cases in SECTIONS.items():
        print(f"\n### {title}\n\n| what is given | ends as | what is said |\n| --- | --- | --- |")
        for case in cases:
            with tempfile.TemporaryDirectory(prefix="bad-input-") as folder:
                try:
                    ends, says = _told(case, run(case, Path(folder)))
                except pytest.skip.Exception as reason:
                    ends, says = "not tried on this machine", str(reason)
            cells = (case.kind, ends, _cell(says.replace(folder, "/data")))
            print(f"| {' | '.join(cells)} |", flush=True)
            print(f"{case.kind}: {ends}", file=sys.stderr)
    stop_workers()


def _told(case: Case, outcome: Outcome) -> tuple[str, str]:
    """How the bad videos ended, and what a person reads."""
    if outcome.counts is None:
        return "refused before anything runs", outcome.refusal or ""
    if outcome.refusal is not None:
        return "not done, no receipt", outcome.refusal
    name = next(name for name in sorted(outcome.ledger, reverse=True) if name.startswith("bad"))
    row = outcome.ledger[name]
    said = [row["error"], row["alignment"]]
    sizes = {f" of {r['frame_width']}x{r['frame_height']} pixels" for r in outcome.rows.get(name, [])}
    said += [f"frames: {row['frames_decoded']}{''.join(sizes)}"] if row["status"] in ("ok", "no_face") else []
    said += [f"boxes: {row['box_source']}"] if row["box_source"] else []
    counts = ", ".join(f"{count.replace('_', ' ')} {number}" for count, number in case.counts.items())
    said += [f"printed by the index: {counts}"] if counts else []
    stage = f", stage {row['stage']}" if row["stage"] else ""
    return f"`{row['status']}`{stage}", "; ".join(filter(None, said))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


if __name__ == "__main__":
    main()
