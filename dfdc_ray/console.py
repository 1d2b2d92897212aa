"""What a person sees while something runs: one console, and one progress display (a bar on a terminal, plain lines elsewhere)."""

import time
import unicodedata
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console()
errors = Console(stderr=True)

_LINE_EVERY_S = 10.0
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def duration(seconds: float) -> str:
    """Seconds as a person writes them: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def printable(name: str) -> str:
    """A name that others chose, fit for a terminal: control characters, and those that turn the writing around, are shown, not sent."""
    return "".join(c.encode("unicode_escape").decode() if _acts(c) else c for c in name)


def _acts(c: str) -> bool:
    """Control characters, halves of surrogate pairs, ends of lines and paragraphs; what the bidirectional algorithm obeys."""
    return unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} or c in _DIRECTIONS


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, with a newline at its end."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n" for line in lines)


class _Bar(Progress):
    """With the details on a line of their own, so that there is room for the counts on a terminal of 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(f"  {detail}", no_wrap=True, overflow="ellipsis") for task in self.tasks if (detail := task.fields["detail"]))


class Work:
    """Progress of a long piece of work: done of total, rate, details, time left.

    On a terminal a live bar; in a log (no terminal) one line every ten seconds and one at the end.
    Use as a context manager; call `advance` as things get done.
    """

    def __init__(self, what: str, *, total: int, unit: str, to: Console = console) -> None:
        self.what, self.total, self.unit, self.to = what, total, unit, to
        self.done = 0
        self.detail = ""
        self._start = self._last_line = time.monotonic()
        self._bar = _Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=to,
            disable=not to.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, rate="", detail="")

    def __enter__(self) -> "Work":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        if kind is None and not self.to.is_terminal:
            self._line()

    def advance(self, n: int = 1, *, detail: str = "") -> None:
        """Say that n more units are done; `detail` is shown beside the rate."""
        self.done += n
        self.detail = detail
        self._bar.update(self._task, completed=self.done, rate=self._rate(), detail=detail)
        now = time.monotonic()
        if not self.to.is_terminal and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            self._line()

    def _rate(self) -> str:
        return f"{self.done / max(time.monotonic() - self._start, 1e-9):.2f} {self.unit}/s"

    def _line(self) -> None:
        elapsed = time.monotonic() - self._start
        left = duration(elapsed / self.done * (self.total - self.done)) if self.done else "unknown"
        tail = f"{left} left" if self.done < self.total else f"took {duration(elapsed)}"
        detail = f", {self.detail}" if self.detail else ""
        self.to.print(
            f"{self.what}: {self.done} of {self.total} {self.unit}, {self._rate()}{detail}, {tail}", highlight=False, soft_wrap=True
        )
