"""Keeps one child process (child.py) at work and harmless: a video that kills or stalls it is tried once more alone, then poison.

Whose fault a death is, its manner tells. A crash (SIGSEGV, SIGABRT, ...), an exit code or an overrun deadline is the video's: two of them
condemn it. SIGKILL, SIGTERM, SIGINT and SIGHUP come from outside: from a machine that shuts down, or from a kernel short of memory, which
may have picked the wrong process. They are forgiven four times, with growing pauses for the trouble to pass; but a video that exhausts the
memory whenever it is tried looks just so, and the fifth condemns it. A child that is found dead before it got a video charges none.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType

from dfdc_ray.errors import StorageError
from dfdc_ray.preprocess.plan import Video
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.unit import Guide, VideoResult, ledger_row
from dfdc_ray.storage import Traffic

_CHILD = [sys.executable, "-m", "dfdc_ray.preprocess.child"]
_START_S = 120.0  # to import and load the networks, on a busy machine
_STALL_S = 60.0  # without a byte, in the midst of a message
_FAULTS = 2  # deaths by its own doing that make a video poison
_KILLS = 5  # and those from outside
_LOOK_S = 1.0  # between two looks at whether the answer is still wanted
_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}


class Unreadable(StorageError):
    """A video's file could not be read, for all that its storage was given time."""


class _Died(Exception):
    """The child is gone, or has to go, while it had a video. from_outside: by a signal that is not the video's doing."""

    def __init__(self, message: str, *, from_outside: bool = False) -> None:
        super().__init__(message)
        self.from_outside = from_outside


class Worker:
    """One child process, started at need and again after a death. Use as a context manager."""

    def __init__(
        self,
        settings: Settings,
        *,
        timeout_s: float,
        memory_bytes: int,
        pause_s: float = 1.0,
        longest_s: float | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
        on_wait: Callable[[], None] = lambda: None,
        faults: int = _FAULTS,
        kills: int = _KILLS,
    ) -> None:
        """timeout_s: seconds for one video, and as many for reading it from the storage.

        pause_s: after the first death from outside; doubled with each further one. longest_s: a video that is longer is an error.
        on_stage: told of each stage as it begins; on_wait: every second in between. What they raise comes out of `process`, and the child
        is ended. faults, kills: so many deaths make a video poison, by its own doing and from outside.
        """
        self.settings, self.timeout_s, self.memory_bytes, self.pause_s = settings, timeout_s, memory_bytes, pause_s
        self.longest_s, self.on_stage, self.on_wait = longest_s, on_stage, on_wait
        self.faults, self.kills = faults, kills
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._stage = "open"
        self.busy = False  # the child has a video
        self.traffic = Traffic()  # with S3, of all tries so far that came to an end

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the child, if it runs."""
        return self._child.pid if self._child else None

    def process(self, video: Video, guide: Guide | None) -> VideoResult:
        """One video's result; never raises for what is wrong with the video. StorageError: nothing is known about the video, try later."""
        deaths: list[_Died] = []
        while True:
            try:
                return self._ask(video, guide)
            except _Died as death:
                self.stop()
                deaths.append(death)
            kills = sum(death.from_outside for death in deaths)
            if kills == self.kills or len(deaths) - kills == self.faults:
                break
            if deaths[-1].from_outside:
                time.sleep(self.pause_s * 2 ** (kills - 1))
        times = "once" if len(deaths) == 1 else f"{len(deaths)} times"
        error = f"its process failed {times}: " + "; ".join(dict.fromkeys(map(str, deaths)))
        return VideoResult(ledger_row(video, status="poison", stage=self._stage, error=error))

    def stop(self) -> None:
        """End the child, if there is one."""
        if self._connection:
            self._connection.close()
        if self._child:
            self._child.kill()
            self._child.wait()
        self._child = self._connection = None

    def _ask(self, video: Video, guide: Guide | None) -> VideoResult:
        if self._child and self._child.poll() is not None:  # while it was idle
            self.stop()
        connection = self._started()
        self._stage = "open"
        reading = True
        left = {"storage": self.timeout_s, "video": self.timeout_s}  # seconds: a slow storage is not the video's fault
        try:
            connection.send((video, guide))
            self.busy = True
            while True:
                whose, start = "storage" if reading else "video", time.monotonic()
                answered = self._answered(connection, left[whose])
                left[whose] -= time.monotonic() - start
                if not answered:
                    if whose == "storage":
                        self.stop()
                        raise Unreadable(f"{video.uri}: could not be read within {self.timeout_s:g} s (--video-timeout-s)")
                    raise _Died(f"took longer than {self.timeout_s:g} s, in stage {self._stage}")
                kind, value = connection.recv()
                if kind == "stage":
                    reading = value == "open"
                    self._stage = self._stage if reading else value  # in mid-video it is that stage that reads
                    self._tell(self.on_stage, value)
                elif kind == "traffic":
                    self.traffic += value
                elif kind == "storage":
                    raise Unreadable(value)
                else:
                    return value
        except (EOFError, OSError) as error:  # OSError: it died in the midst of a message
            if self._child is None:  # ended for what on_stage or on_wait raised
                raise
            if isinstance(error, BlockingIOError):  # _STALL_S are over
                raise _Died(f"stopped answering, in stage {self._stage}") from error
            ending, from_outside = self._ending()
            raise _Died(f"{ending}, in stage {self._stage}", from_outside=from_outside) from error
        finally:
            self.busy = False

    def _answered(self, connection: Connection, within_s: float) -> bool:
        until = time.monotonic() + within_s
        while not connection.poll(max(0.0, min(_LOOK_S, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
            self._tell(self.on_wait)
        return True

    def _tell(self, tell: Callable[..., None], *what: str) -> None:
        try:
            tell(*what)
        except BaseException:
            self.stop()  # nobody will read its answer
            raise

    def _started(self) -> Connection:
        if self._connection:
            return self._connection
        ours, theirs = socket.socketpair()
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # poll() sees that a message begins, not that it ends
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(_STALL_S), 0))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),  # a Ray job's working_dir is only on sys.path
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            self._child = subprocess.Popen(
                [*_CHILD, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        try:
            self._connection.send((self.settings, self.memory_bytes, self.longest_s))
            ready = self._connection.poll(_START_S) and self._connection.recv()
        except (EOFError, OSError):
            ready = False
        if not ready:  # the machine's trouble, not a video's
            ending, _ = self._ending()
            self.stop()
            raise StorageError(f"the decoding process did not start ({ending}); its own message is in the log")
        return self._connection

    def _ending(self) -> tuple[str, bool]:
        """How the child ended, and whether that came from outside."""
        assert self._child is not None
        try:
            code = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "stopped answering", False
        said = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return said, code in _FROM_OUTSIDE
