"""Ray nodes as processes of a test: a head and worker nodes on one machine, any of which may be killed, and nothing of them is left behind.

Whatever a test starts stays below it: it takes in orphans (PR_SET_CHILD_SUBREAPER), so that actors whose raylet was killed are found too.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_START_S = 120.0  # for a node, on a machine that is busy
# A node counts as dead after three checks; its raylet may be slow to answer where many share two cores.
_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Node:
    """One `ray start --block` with what it started."""

    starter: psutil.Popen
    log: Path

    @property
    def raylet(self) -> psutil.Process | None:
        """The node's raylet, while it lives."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return next((p for p in self.starter.children() if p.name() == "raylet" and _alive(p)), None)
        return None

    @property
    def up(self) -> bool:
        """Whether it has started."""
        return "Ray runtime started" in self.log.read_text(errors="replace")

    def wait_until_up(self) -> bool:
        """False if it ended, as Ray does where a node takes more than 30 s; AssertionError with the log if it hangs."""
        deadline = time.monotonic() + _START_S
        while not self.up and self.starter.poll() is None:
            assert time.monotonic() < deadline, f"a Ray node did not start:\n{self.log.read_text(errors='replace')}"
            time.sleep(0.05)
        return self.up


class Cluster:
    """A head without work, as in cluster.yaml, and worker nodes. `environment` leads a driver to it."""

    def __init__(self, folder: Path, *, cpus: int, variables: Mapping[str, str]) -> None:
        """folder: short, since it holds sockets. cpus: of each worker node. variables: more of the environment, for nodes and drivers."""
        self.folder, self.cpus = folder, cpus
        self.workers: list[Node] = []
        self._numbers = itertools.count()
        self._address = f"127.0.0.1:{free_port()}"
        own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        ours = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": self._address}
        self.environment = own | dict(variables) | _HEALTH | ours

    def start(self, workers: int) -> None:
        """The head, then the worker nodes."""
        port = self._address.split(":")[1]
        head = self._start("--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false", "--num-cpus=0")
        assert head.wait_until_up(), head.log.read_text(errors="replace")
        self.complete(workers)

    def complete(self, workers: int) -> None:
        """Replace the dead worker nodes, and wait until all are up. AssertionError if they keep failing."""
        deadline = time.monotonic() + 3 * _START_S
        self.fill(workers)
        while len(self.workers) < workers or not all(node.up for node in self.workers):
            assert self.workers[-1].wait_until_up() or time.monotonic() < deadline, self.workers[-1].log.read_text(errors="replace")
            self.fill(workers)

    def fill(self, workers: int) -> None:
        """Replace a dead worker node, without waiting for the new one; one at a time: at once they would choose the same sockets."""
        self.workers = [node for node in self.workers if node.starter.poll() is None and (node.raylet or not node.up)]
        if len(self.workers) < workers and all(node.up for node in self.workers):
            # An address of its own for each, else the driver could take a worker's raylet for its own and die with it.
            address = f"127.0.0.{2 + next(self._numbers) % 250}"
            self.workers.append(self._start(f"--address={self._address}", f"--node-ip-address={address}", f"--num-cpus={self.cpus}"))

    def _start(self, *options: str) -> Node:
        common = [
            "--block",
            "--object-store-memory=80000000",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
        ]
        log = self.folder / f"node{len(list(self.folder.glob('node*.log')))}.log"
        environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        with log.open("w") as out:
            starter = psutil.Popen(
                [RAY, "start", *options, *common], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        return Node(starter, log)


@contextmanager
def cluster(*, workers: int, cpus: int, variables: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A running cluster, killed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
    try:
        with nothing_left():
            made = Cluster(folder, cpus=cpus, variables=variables or {})
            made.start(workers)
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Afterwards no process lives that was started inside, however it was orphaned. AssertionError names those that withstand SIGKILL."""
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        deadline = time.monotonic() + 30
        while left := [p for p in descendants() if p.pid not in before]:
            assert time.monotonic() < deadline, f"still there: {left}"
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.1)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def descendants() -> list[psutil.Process]:
    """All living processes below this one."""
    return [process for process in psutil.Process().children(recursive=True) if _alive(process)]


def command_of(process: psutil.Process) -> str:
    """Its command line, as one string; empty if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def send(process: psutil.Process, what: signal.Signals) -> bool:
    """Send a signal; False if the process was gone."""
    try:
        process.send_signal(what)
    except psutil.NoSuchProcess:
        return False
    return True


def free_port() -> int:
    """An ephemeral port: Ray keeps 10002 to 19999 for its workers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
