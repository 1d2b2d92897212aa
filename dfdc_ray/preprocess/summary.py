"""What a run says at its end: the ledger as a table, what was not done, and whether too much went wrong."""

import re
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
from rich.table import Table

from dfdc_ray.console import console, duration, printable
from dfdc_ray.errors import UserError


def print_summary(ledger: pa.Table, *, seconds: float) -> None:
    """The whole output by outcome and label, and why videos went wrong."""
    rows = ledger.to_pylist()
    table = Table(title=f"Ledger: {len(rows)} videos")
    for column in ("status", "real", "fake", "no label", "frames with a face", "faces", "boxes from original"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for status in ("ok", "no_face", "error", "missing", "poison"):
        some = [row for row in rows if row["status"] == status]
        by_label = [sum(row["label"] == label for row in some) for label in ("REAL", "FAKE", None)]
        decoded, found = sum(row["frames_decoded"] for row in some), sum(row["frames_with_face"] for row in some)
        share = f"{found} of {decoded} ({found / decoded:.1%})" if decoded else "-"
        reused = sum(row["box_source"] == "original" for row in some)
        table.add_row(status, *map(str, by_label), share, str(sum(row["faces"] for row in some)), str(reused))
    console.print(table)
    sound = Counter((row["sound"] or "").split(":")[0] for row in rows)
    if sound.keys() - {""}:
        said = f"{sound['ok']} videos have it, {sound['none']} have none, of {sound['silent']} it is silent, of {sound['damaged']} damaged."
        console.print(f"Sound: {said}", highlight=False)
    bad = [row for row in rows if row["status"] not in ("ok", "no_face")]
    for row in bad[:20]:
        said = printable(f"{row['status']}: {row['video_id']}: {row['stage'] or ''} {row['error']}")
        console.print(f"  {said}", highlight=False, markup=False, soft_wrap=True)
    if len(bad) > 20:
        console.print(f"  and {len(bad) - 20} more in ledger.parquet")
    console.print(f"Took {duration(seconds)}.")


@dataclass
class Losses:
    """Where the pictures are that were listed for an import and could not be had."""

    absent: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.absent) + len(self.damaged)


def print_losses(losses: Losses, listed: int) -> None:
    """How many of the listed pictures are lost, if some are."""
    if losses:
        how = f"{len(losses.absent):,} absent, {len(losses.damaged):,} damaged"
        first = printable((losses.absent or losses.damaged)[0])
        said = f"{len(losses):,} of {listed:,} pictures could not be had: {how}; first: {first}"
        console.print(said, style="yellow", highlight=False, markup=False, soft_wrap=True)


def not_done(failures: dict[str, str]) -> str:
    reasons = "\n".join(f"  {unit_id}: {reason}" for unit_id, reason in list(failures.items())[:10])
    what = f"{len(failures)} units were not done because storage or the machine failed"
    return f"{what}:\n{reasons}\nRun the same command again: it does only these."


def too_many_errors(ledger: pa.Table, planned: set[str], most: float) -> list[str]:
    """What to say if a larger share of this run's videos than `most` ended as error or poison; those that are missing are left out."""
    rows = [row for row in ledger.to_pylist() if row["video_id"] in planned and row["status"] != "missing"]
    bad = [row for row in rows if row["status"] in ("error", "poison")]
    if len(bad) <= most * len(rows):
        return []
    causes = Counter(f"{row['status']}: {row['stage']} {_without_numbers(row['error'])}" for row in bad)
    common = "\n".join(f"  {count} x {cause}" for cause, count in causes.most_common(5))
    return [
        f"{len(bad)} of {len(rows)} videos ({len(bad) / len(rows):.2%}) ended as error or poison, more than --max-error-share {most:g} "
        f"allows. Most often:\n{common}\nThe rest is done and published; ledger.parquet names each. --retry error poison does them again; "
        "a larger --max-error-share accepts them."
    ]


def too_many_losses(losses: Losses, listed: int, most: float) -> str:
    """What to say if a larger share of the listed pictures than `most` is lost."""
    if len(losses) <= most * listed:
        return ""
    return (
        f"{len(losses):,} of {listed:,} pictures ({len(losses) / listed:.2%}) were absent or damaged, more than --max-error-share {most:g} "
        "allows. The rest is written; ledger.parquet says what each video lacks. Bring them back and run the same command again; a larger "
        "--max-error-share accepts it as it is."
    )


def check_error_share(most: float) -> None:
    """UserError if --max-error-share is no share."""
    if not 0 <= most <= 1:
        raise UserError(f"--max-error-share {most}: must be between 0 (none may fail) and 1 (all may).")


def _without_numbers(text: str) -> str:
    """So that the same trouble in two videos reads the same."""
    return re.sub(r"\d+(\.\d+)?", "#", text)
