"""Hosts of their own on one machine: each has a network address, processes, temporary files and shared memory of its own, and may only read
the disk, so that whatever they exchange goes through the network. Linux namespaces do it (unshare, veth, a bridge); it needs root.
"""

import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos.nodes import RAY, nothing_left

_STARTED = "Ray runtime started"  # as `ray start` prints
_START_S = 120.0  # for a node, on a machine that is busy
# A host that is gone does not even refuse: three checks of 5 s.
_HEALTH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "3"}
# $1: a folder for temporary files, the same on all hosts, as Ray wants it. Then the command.
_INSIDE = """
set -e
mount -o remount,bind,ro /
mount -t tmpfs tmpfs "$1"
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
until ip -4 addr show dev eth0 2>/dev/null | grep -q inet; do sleep 0.05; done
shift
exec "$@"
"""


@dataclass(frozen=True)
class Host:
    """A host and what runs there."""

    address: str
    process: subprocess.Popen
    log: Path

    def says(self, words: str) -> bool:
        """Wait until its log has these words. False if it ends before; AssertionError with the log if it takes too long."""
        deadline = time.monotonic() + _START_S
        while words not in (said := self.log.read_text(errors="replace")) and self.process.poll() is None:
            assert time.monotonic() < deadline, f"no {words!r}:\n{said}"
            time.sleep(0.05)
        return words in said

    def kill(self) -> None:
        """As if its plug were pulled: all its processes die, and its address answers no more."""
        self.process.kill()  # with --kill-child its first process dies too, and with that all others
        self.process.wait()


class Network:
    """Hosts with a bridge between them, on which this process has the address `gateway`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._id = secrets.token_hex(3)
        self._net = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self._numbers = itertools.count(2)
        self.gateway = f"{self._net}.1"
        self.bridge = f"br{self._id}"

    def up(self) -> None:
        """Make the bridge. Skips the test where that is not allowed."""
        for command in (["ip", "link", "add", self.bridge, "type", "bridge"], ["unshare", "--net", "--mount", "--pid", "--fork", "true"]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError as error:
                pytest.skip(f"no hosts of their own here: {error}")
            if done.returncode:
                pytest.skip(f"no hosts of their own here: {' '.join(command)}: {done.stderr.strip()}")
        # A bridge takes the lowest address of its cables, and another one when that cable goes: then the hosts talk to nobody for minutes.
        _ip("link", "set", self.bridge, "address", f"02:00:00:{self._id[:2]}:{self._id[2:4]}:{self._id[4:]}")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def start(self, command: list[str], environment: Mapping[str, str]) -> Host:
        """A new host that runs the command. `{address}` in it is the host's own."""
        number = next(self._numbers)
        address, cable = f"{self._net}.{number}", f"v{self._id}{number}"
        log = self.folder / f"host{number}.log"
        inside = [word.replace("{address}", address) for word in command]
        apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
        with log.open("w") as out:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *apart, "sh", "-c", _INSIDE, "sh", str(self.folder), *inside],
                env=dict(environment) | {"TMPDIR": str(self.folder), "MPLCONFIGDIR": str(self.folder)},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        while os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        _ip("link", "set", cable, "master", self.bridge, "up")
        for words in (["link", "set", "eth0", "up"], ["addr", "add", f"{address}/24", "dev", "eth0"]):
            subprocess.run(["nsenter", "--target", str(process.pid), "--net", "ip", *words], check=True)
        return Host(address, process, log)

    def down(self) -> None:
        """Remove the bridge; the cables go with their hosts."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.bridge)


@contextmanager
def network() -> Iterator[Network]:
    """A network without hosts; afterwards all its hosts are gone."""
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: it holds sockets
    made = Network(folder)
    try:
        with nothing_left():
            made.up()
            yield made
    finally:
        made.down()
        shutil.rmtree(folder, ignore_errors=True)


class RayHosts:
    """A Ray head without CPUs, and worker hosts; each wants the token. `client` is the environment for `ray job submit` from outside."""

    def __init__(self, network: Network, variables: Mapping[str, str]) -> None:
        """variables: of the hosts' environment, such as those that lead to S3."""
        self.network = network
        own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        own["PATH"] = f"{Path(sys.executable).parent}:{own['PATH']}"  # a job's `python` is the head's
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        self._environment = own | dict(variables) | token | _HEALTH | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
        self.head = self._start("--head", "--port=6379", "--dashboard-host=0.0.0.0", f"--temp-dir={network.folder}", "--num-cpus=0")
        assert self.head.says(_STARTED), self.head.log.read_text()
        self.client = own | token | {"RAY_API_SERVER_ADDRESS": f"http://{self.head.address}:8265"}

    def add(self, workers: int, *, cpus: int) -> list[Host]:
        """So many worker hosts, when they are up. Ray gives a node 30 s to start; on a machine that is busier a second may be needed."""
        options = [f"--address={self.head.address}:6379", f"--num-cpus={cpus}"]
        started = [self._start(*options) for _ in range(workers)]
        return [host if host.says(_STARTED) else self._once_more(*options) for host in started]

    def _once_more(self, *options: str) -> Host:
        host = self._start(*options)
        assert host.says(_STARTED), host.log.read_text()
        return host

    def _start(self, *options: str) -> Host:
        command = [RAY, "start", *options, "--block", "--node-ip-address={address}", "--object-store-memory=80000000"]
        return self.network.start(command, self._environment)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
