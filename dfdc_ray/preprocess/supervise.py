"""Keeps one child process (child.py) at work and harmless: a video that kills or stalls it is tried once more alone, then poison."""

import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from types import TracebackType

from dfdc_ray.errors import StorageError
from dfdc_ray.preprocess.plan import Video
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.unit import Guide, VideoResult, ledger_row

_START_S = 120.0  # to import and load the networks, on a busy machine
_TRIES = 2


class _Died(Exception):
    """The child is gone, or was killed past its deadline."""


class Worker:
    """One child process, started at need and again after a death. Use as a context manager."""

    def __init__(self, settings: Settings, *, timeout_s: float, memory_bytes: int) -> None:
        self.settings, self.timeout_s, self.memory_bytes = settings, timeout_s, memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._stage = "open"
        self.busy = False  # the child has a video

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
        deaths = []
        for _ in range(_TRIES):
            try:
                return self._ask(video, guide)
            except _Died as death:
                deaths.append(str(death))
                self.stop()
        error = f"its process failed {_TRIES} times: " + "; ".join(dict.fromkeys(deaths))
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
        connection = self._started()
        self._stage = "open"
        deadline = time.monotonic() + self.timeout_s
        try:
            connection.send((video, guide))
            self.busy = True
            while True:
                if not connection.poll(max(0.0, deadline - time.monotonic())):
                    raise _Died(f"took longer than {self.timeout_s:g} s, in stage {self._stage}")
                kind, value = connection.recv()
                if kind == "stage":
                    self._stage = value
                elif kind == "storage":
                    raise StorageError(value)
                else:
                    return value
        except (EOFError, ConnectionError) as error:
            raise _Died(f"{self._ending()}, in stage {self._stage}") from error
        finally:
            self.busy = False

    def _started(self) -> Connection:
        if self._connection:
            return self._connection
        ours, theirs = socket.socketpair()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),  # a Ray job's working_dir is only on sys.path
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "dfdc_ray.preprocess.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        try:
            self._connection.send((self.settings, self.memory_bytes))
            ready = self._connection.poll(_START_S) and self._connection.recv()
        except (EOFError, ConnectionError):
            ready = False
        if not ready:  # the machine's trouble, not a video's
            ending = self._ending()
            self.stop()
            raise StorageError(f"the decoding process did not start ({ending}); its own message is in the log")
        return self._connection

    def _ending(self) -> str:
        assert self._child is not None
        try:
            code = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
