"""What was found in a corpus, counted and printed before anything runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from dfdc_ray.console import console, printable

_NAMED = 10  # how many of each kind are named


@dataclass(frozen=True)
class CorpusCounts:
    """What was found in one corpus."""

    corpus: str
    parts: tuple[int, ...]
    videos: int
    real: int
    fake: int
    unlabelled: int
    families: int
    groups: int
    originals_absent: int
    """Originals that fakes name and that have no file here."""
    fakes_without_original: int
    """Fakes whose metadata names none."""
    originals_in_other_part: int
    """Fakes whose original is in another part."""
    subjects_may_recur: bool
    """Labelled videos have no group but their family."""
    files_without_metadata: tuple[str, ...]
    """uris of videos that the metadata.json beside them does not list, or in a part without one."""
    metadata_without_files: tuple[str, ...]
    """video_ids that are listed and have no file."""
    duplicates: tuple[str, ...]
    """uris left out because another file has the same video_id."""
    ignored: tuple[str, ...]
    """uris of files that are no videos, and of folders that were not looked into."""


@dataclass(frozen=True)
class Counts:
    """What was found, by corpus, in order of their names."""

    corpora: tuple[CorpusCounts, ...]


def print_counts(counts: Counts) -> None:
    """Print what was found: a column for each corpus, then what needs attention, by name."""
    table = Table(title="Corpus")
    table.add_column("")
    for corpus in counts.corpora:
        table.add_column(Text(corpus.corpus), justify="right", overflow="fold")
    rows: dict[str, list[str]] = {
        "parts": [_ranges(c.parts) or "-" for c in counts.corpora],
        "videos": [str(c.videos) for c in counts.corpora],
        "  real": [str(c.real) for c in counts.corpora],
        "  fake": [str(c.fake) for c in counts.corpora],
        "  without label": [str(c.unlabelled) for c in counts.corpora],
        "families": [str(c.families) for c in counts.corpora],
        "groups": [str(c.groups) for c in counts.corpora],
        "originals absent": [str(c.originals_absent) for c in counts.corpora],
        "fakes without original": [str(c.fakes_without_original) for c in counts.corpora],
        "originals in another part": [str(c.originals_in_other_part) for c in counts.corpora],
        "files without metadata": [str(len(c.files_without_metadata)) for c in counts.corpora],
        "metadata without files": [str(len(c.metadata_without_files)) for c in counts.corpora],
        "duplicates left out": [str(len(c.duplicates)) for c in counts.corpora],
        "other files ignored": [str(len(c.ignored)) for c in counts.corpora],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)
    for line in _remarks(counts):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _remarks(counts: Counts) -> Iterator[str]:
    for c in counts.corpora:
        if c.subjects_may_recur:
            prevents = "a groups.csv, or a column `group` of imported crops, prevents it"
            yield f"{c.corpus}: some videos have no group but their family: subjects may recur between splits ({prevents})."
        for what, names in {
            "files without metadata": c.files_without_metadata,
            "metadata without files": c.metadata_without_files,
            "duplicates left out": c.duplicates,
            "ignored": c.ignored,
        }.items():
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                yield f"{c.corpus}: {what}: {', '.join(map(printable, names[:_NAMED]))}{more}"


def _ranges(numbers: Sequence[int]) -> str:
    """0-3,7 for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
