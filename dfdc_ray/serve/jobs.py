"""Uploaded videos on their way through one worker: a queue with limits, and results that are kept for a while.

Knows nothing of HTTP, of Ray or of models. A file lies in a private folder from its first byte until its work is done, has failed or is no
longer wanted, and no longer. Whoever knows a job's id, which cannot be guessed, may see and delete it.
"""

import logging
import os
import secrets
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, Protocol, TypeVar

from dfdc_ray.console import printable

State = Literal["receiving", "waiting", "working", "done", "failed"]
_LONGEST_NAME = 120  # characters
_TIDY_S = 30.0  # results that are too old go at least so often
_END_S = 10.0  # for the work at hand, when all ends
_log = logging.getLogger(__name__)


class Busy(Exception):
    """As many videos wait as may."""


class TooLarge(Exception):
    """A file has more bytes than are taken."""


class Refused(Exception):
    """Nothing can be made of this file. The message is for the person who sent it: what is wrong, and what to do."""


class Cancelled(Exception):
    """Nobody wants the result any more. Raised where work says how far it is."""


class Kept(Protocol):
    """What work makes of a file."""

    @property
    def size(self) -> int:
        """Bytes of memory, about."""


T = TypeVar("T", bound=Kept)
Progress = Callable[[str, float | None], None]  # the stage, and the share of it that is done, where it is known
Work = Callable[[Path, str, Progress], T]  # a file and its name; Refused for what is wrong with it


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much there may be of everything."""

    max_bytes: int  # of a file
    waiting: int = 50  # files, those included that are being received
    keep_s: float = 3600.0  # results are kept so long,
    keep: int = 100  # so many at most, and so many failures,
    keep_bytes: int = 1 << 30  # and so large in all


@dataclass(frozen=True, kw_only=True)
class Look(Generic[T]):
    """A job as it is now."""

    id: str
    name: str
    state: State
    position: int | None = None  # 1: the next
    stage: str | None = None
    share: float | None = None  # of the stage, 0 to 1
    result: T | None = None  # of what is done
    message: str | None = None  # of what has failed
    expires_s: float | None = None  # until it is forgotten, at the latest


@dataclass(eq=False)
class _Job(Generic[T]):
    id: str
    number: int
    path: Path
    name: str = "video"
    state: State = "receiving"
    stage: str | None = None
    share: float | None = None
    result: T | None = None
    message: str | None = None
    ended: float = 0.0  # time.monotonic()
    cancelled: bool = field(default=False)


class Jobs(Generic[T]):
    """The queue, its worker (a thread) and the results. Any thread may call any method. `close` ends it and deletes what is left."""

    def __init__(self, folder: Path, work: Work[T], limits: Limits) -> None:
        """folder: exists, is private, and is emptied: whatever lies there is of an earlier life."""
        self.limits = limits
        self._folder, self._work = folder, work
        for left in folder.iterdir():
            left.unlink()
        self._jobs: dict[str, _Job[T]] = {}
        self._waiting: deque[_Job[T]] = deque()
        self._receiving = self._count = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the worker is there."""
        return self._thread.is_alive()

    def receive(self) -> "Upload[T]":
        """A place for one more file. Busy if there is none."""
        with self._changed:
            if self._closed or self._receiving + len(self._waiting) >= self.limits.waiting:
                raise Busy
            self._receiving += 1
            self._count += 1
            job: _Job[T] = _Job(secrets.token_urlsafe(16), self._count, self._folder / secrets.token_hex(16))
        return Upload(self, job)

    def look(self, job_id: str) -> Look[T] | None:
        """None for a job that there is not, or not any more."""
        with self._changed:
            self._forget_old()
            if (job := self._jobs.get(job_id)) is None:
                return None
            return Look(
                id=job.id,
                name=job.name,
                state=job.state,
                position=self._waiting.index(job) + 1 if job.state == "waiting" else None,
                stage=job.stage if job.state == "working" else None,
                share=job.share if job.state == "working" else None,
                result=job.result,
                message=job.message,
                expires_s=max(0.0, job.ended + self.limits.keep_s - time.monotonic()) if job.ended else None,
            )

    def delete(self, job_id: str) -> bool:
        """Forget a job and its file, whatever state it is in. False if there is none."""
        with self._changed:
            if (job := self._jobs.pop(job_id, None)) is None:
                return False
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
            _unlink(job.path)
            return True

    def close(self) -> None:
        """Delete all files and results, and end the worker: what it is at is given up at its next sign of life."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            for job_id in list(self._jobs):
                self.delete(job_id)
            self._changed.notify_all()
        self._thread.join(_END_S)

    def submit(self, job: "_Job[T]") -> None:
        """Of Upload: a file is there."""
        with self._changed:
            self._receiving -= 1
            if self._closed:
                _unlink(job.path)
                return
            job.state = "waiting"
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify_all()

    def drop(self, job: "_Job[T]") -> None:
        """Of Upload: a file will not come."""
        with self._changed:
            self._receiving -= 1
        _unlink(job.path)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._closed):
                    self._forget_old()
                    self._changed.wait(_TIDY_S)
                if self._closed:
                    return
                job = self._waiting.popleft()
                job.state = "working"
            self._do(job)

    def _do(self, job: _Job[T]) -> None:
        def progress(stage: str, share: float | None) -> None:
            if job.cancelled:
                raise Cancelled
            job.stage, job.share = stage, share

        result, message = None, None
        try:
            result = self._work(job.path, job.name, progress)
        except Cancelled:
            pass
        except Refused as error:
            message = str(error)
        except Exception as error:  # whatever it is, the next video shall not suffer; no text of it is shown, which could name paths
            _log.error("video %d: %s%s", job.number, type(error).__name__, place_of(error))
            message = "Something went wrong here that is not the video's fault. Try again; if it stays so, tell whoever runs this server."
        _unlink(job.path)
        with self._changed:
            job.result, job.message = result, message
            job.state, job.ended = "failed" if result is None else "done", time.monotonic()
            self._forget_old()

    def _forget_old(self) -> None:
        ended = sorted((job for job in self._jobs.values() if job.ended), key=lambda job: -job.ended)
        held, places = 0, {True: 0, False: 0}
        for job in ended:
            failed = job.result is None
            held += 0 if job.result is None else job.result.size
            too_many = places[failed] >= self.limits.keep or (places[failed] > 0 and held > self.limits.keep_bytes)
            places[failed] += 1
            if too_many or job.ended + self.limits.keep_s < time.monotonic():
                del self._jobs[job.id]


class Upload(Generic[T]):
    """A file that comes in pieces. Use as a context manager: one that is left before `finish` is deleted."""

    def __init__(self, jobs: Jobs[T], job: _Job[T]) -> None:
        self._jobs, self._job = jobs, job
        self._received = 0
        self._finished = False

    def __enter__(self) -> "Upload[T]":
        try:
            self._file = open(os.open(self._job.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        except OSError:
            self._jobs.drop(self._job)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # of what could not be written; it was raised before
            self._file.close()
        if not self._finished:
            self._jobs.drop(self._job)

    @property
    def received(self) -> int:
        """Bytes."""
        return self._received

    def write(self, data: bytes) -> None:
        """More of the file. TooLarge beyond the limit, OSError where the disk is full."""
        self._received += len(data)
        if self._received > self._jobs.limits.max_bytes:
            raise TooLarge
        self._file.write(data)

    def finish(self, name: str) -> str:
        """The file is complete: it queues up. name: as the sender calls it. Returns the job's id."""
        self._file.close()
        self._job.name = safe_name(name)
        self._jobs.submit(self._job)
        self._finished = True
        return self._job.id


def safe_name(name: str) -> str:
    """A name to show: without folders, not too long, control characters made printable, every kind of space a plain one."""
    name = "".join(" " if unicodedata.category(c) == "Zs" else c for c in name)
    name = name.replace("\\", "/").rpartition("/")[2].strip()
    if len(name) > _LONGEST_NAME:
        name = name[: _LONGEST_NAME - 9] + "…" + name[-8:]
    return printable(name) or "video"


def _unlink(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def place_of(error: BaseException) -> str:
    """Where in which file it happened, for a log that shall name no paths: ` at judge.py:67`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else ""
