"""What this process and all below it use: CPU time, also of those that end meanwhile, and the peak memory of an actor and its child."""

import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType

import psutil

_EVERY_S = 0.25
_CHILD = "dfdc_ray.preprocess.child"


class Meter:
    """Use as a context manager around the work; read the results after it.

    peak_mb: resident memory of a preprocessing child and its actor, the sum of each one's own peak; the largest pair; nan without one.
    """

    peak_mb: float

    def __enter__(self) -> "Meter":
        self._cpu: dict[tuple[int, float], float] = {}  # by process: its CPU seconds so far
        self._roles: dict[tuple[int, float], str] = {}
        self._pairs: dict[int, float] = {}  # by child: peak MB with its actor
        self._own = 0.0
        self._sample()
        self._before = dict(self._cpu)
        self._own = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        self.peak_mb = max(self._pairs.values(), default=float("nan"))

    def by_role(self) -> dict[str, float]:
        """CPU seconds since the block began: driver (this process, less the meter), actors, their children, raylet, gcs, other.

        What a process uses in its last quarter of a second may be missed.
        """
        self._sample()
        seconds = defaultdict(float, driver=-self._own)
        for process, now in self._cpu.items():
            seconds[self._roles.get(process, "other")] += now - self._before.get(process, 0.0)
        return dict(seconds)

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        start = time.thread_time()
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                times = process.cpu_times()
                command = process.cmdline()
                if command:  # one that is ending has none any more
                    self._roles[process.pid, process.create_time()] = _role(process.pid, command)
                self._cpu[process.pid, process.create_time()] = times.user + times.system
                if _CHILD in command:
                    self._pairs[process.pid] = (peak_kb(process.pid) + peak_kb(process.ppid())) / 1024
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
        self._own += time.thread_time() - start


def _role(pid: int, command: list[str]) -> str:
    if pid == os.getpid():
        return "driver"
    program = command[0] if command else ""
    if program.startswith("ray::MapWorker"):
        return "actors"
    if _CHILD in command:
        return "children"
    return {"raylet": "raylet", "gcs_server": "gcs"}.get(program.rpartition("/")[2], "other")


def peak_kb(pid: int) -> int:
    """Most memory that a process has held so far: VmHWM of /proc/PID/status; 0 for one that has ended but is still listed."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
