"""Violence against a preprocessing run, at random moments, and the proof that it left no trace: rows, bytes and ledger as without it.

A round is one run of the command, from its start to its end: by itself, by SIGKILL or by SIGTERM. Each round is dealt a few blows; the next
goes on with the same output. A seed fixes the order of blows and pauses; where in the work they strike is as random as the machine. In the
end the command runs in peace until it says that all is done.
"""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from chaos.nodes import Cluster, command_of, descendants, send
from small_disk import SmallDisk

from dfdc_ray import storage

RUN_S = 900.0  # for one run of the command, whatever is done to it
# In the midst of a run: signals to an actor, its child, the raylet of a worker node; all space of the output's disk taken for a while.
BLOWS = ("actor SIGKILL", "actor SIGTERM", "child SIGKILL", "raylet SIGKILL", "disk full")
ENDS = ("driver SIGKILL", "driver SIGTERM")  # of a run


@dataclass
class Tally:
    """What was done, and what was compared."""

    rounds: int = 0
    blows: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        """Processes that were killed; a job that was told to stop is one too, an actor that was told so is not."""
        return sum(count for blow, count in self.blows.items() if "SIGKILL" in blow or blow == "driver SIGTERM")

    def __str__(self) -> str:
        blows = ", ".join(f"{count} x {blow}" for blow, count in sorted(self.blows.items()))
        compared = ", ".join(f"{count} {what}" for what, count in self.compared.items())
        return f"chaos: {self.rounds} rounds, {self.kills} kills ({blows}). Compared with the undisturbed run and identical: {compared}"


@dataclass
class Storm:
    """One output under attack, on worker nodes of a cluster."""

    cluster: Cluster
    workers: int  # worker nodes
    command: Sequence[str]
    out: str  # its output
    log: Path  # of the command's last run
    random: random.Random
    tally: Tally
    pause_s: tuple[float, float] = (0.2, 3.0)  # before a blow: the least and the most
    disk: SmallDisk | None = None  # that holds the output

    def round(self, blows: Sequence[str], end: str | None = None) -> bool:
        """One run with these blows and this end; without one, or if it is faster, it goes on to its own. True when all is done."""
        self.tally.rounds += 1
        with self._running() as driver:
            deadline, before = time.monotonic() + RUN_S, self._done()
            for blow in blows:
                self._wait(driver, deadline, until=lambda: bool(children()))
                self._pause(driver)
                if driver.poll() is not None:
                    break
                self._strike(blow)
            if end:
                if self.random.random() < 0.8:  # else perhaps before anything is done
                    self._wait(driver, deadline, until=lambda: self._done() > before)
                self._pause(driver)
                if driver.poll() is None and send(driver, signal.Signals[end.split()[1]]):
                    self.tally.blows[end] += 1
            self._wait(driver, deadline, until=lambda: False)
            code = int(driver.returncode)
            ran = f"{', '.join(blows)}; {end}: exit code {code} after {RUN_S - deadline + time.monotonic():.0f} s"
            (self.log.parent / f"round-{self.tally.rounds}.log").write_text(f"{ran}\n{self.log.read_text(errors='replace')}")
            if code == 128 + signal.SIGTERM:
                self._check_published(at_least=before)
            return code == 0

    def calm(self) -> str:
        """Run in peace to the end; what was printed. AssertionError if it does not end well."""
        assert self.round([]), self.log.read_text(errors="replace")
        return self.log.read_text(errors="replace")

    @contextmanager
    def _running(self) -> Iterator[psutil.Popen]:
        """The command at work; its actors and their children are gone when this is over, however it ended."""
        self.cluster.complete(self.workers)
        with self.log.open("w") as out:
            quiet = {"stdout": out, "stderr": out, "stdin": subprocess.DEVNULL}
            driver = psutil.Popen(list(self.command), env=self.cluster.environment, start_new_session=True, **quiet)
        try:
            yield driver
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
        deadline = time.monotonic() + 90
        while left := [*actors(), *children()]:
            assert time.monotonic() < deadline, f"they outlive their driver: {left}"
            time.sleep(0.1)

    def _wait(self, driver: psutil.Popen, deadline: float, *, until: Callable[[], bool]) -> None:
        """Until then, or until the run is over. Dead nodes are replaced meanwhile."""
        while driver.poll() is None and not until():
            assert time.monotonic() < deadline, f"it hangs:\n{self.log.read_text(errors='replace')}"
            self.cluster.fill(self.workers)
            time.sleep(0.1)

    def _check_published(self, *, at_least: int) -> None:
        """A run that was told to stop leaves a manifest of what is done; AssertionError if its files are not what it says."""
        files = json.loads(storage.read_bytes(storage.join(self.out, "manifest.json")))["files"]
        assert len(files) >= at_least
        for file in files:
            assert hashlib.sha256(storage.read_bytes(storage.join(self.out, file["path"]))).hexdigest() == file["sha256"]

    def _done(self) -> int:
        """Units that have a receipt."""
        try:
            return len(storage.list_dir(storage.join(self.out, "receipts")))
        except FileNotFoundError:
            return 0

    def _pause(self, driver: psutil.Popen) -> None:
        """For a random time, or until the run is over."""
        try:
            driver.wait(self.random.uniform(*self.pause_s))
        except psutil.TimeoutExpired:
            return

    def _strike(self, blow: str) -> None:
        """Do it, if there is something to do it to, and count it."""
        if blow == "disk full":
            assert self.disk
            self.disk.fill()
            time.sleep(self.random.uniform(*self.pause_s))
            self.disk.free()
            self.tally.blows[blow] += 1
            return
        what, name = blow.split()
        targets = {"actor": actors, "child": children, "raylet": self._raylets}[what]()
        if targets and send(self.random.choice(targets), signal.Signals[name]):
            self.tally.blows[blow] += 1

    def _raylets(self) -> list[psutil.Process]:
        """Of the worker nodes that have an actor, if any has."""
        raylets = [node.raylet for node in self.cluster.workers if node.raylet]
        busy = {actor.ppid() for actor in actors() if actor.is_running()}
        return [raylet for raylet in raylets if raylet.pid in busy] or raylets


def actors() -> list[psutil.Process]:
    """Actors that process units."""
    return [p for p in descendants() if command_of(p).startswith("ray::MapWorker")]


def children() -> list[psutil.Process]:
    """Their children, which decode."""
    return [p for p in descendants() if "dfdc_ray.preprocess.child" in command_of(p)]


def compare(undisturbed: str, disturbed: str, tally: Tally) -> None:
    """AssertionError unless two outputs are the same for a reader: rows with their pictures, files, receipts, ledger."""
    manifests = [json.loads(storage.read_bytes(storage.join(out, "manifest.json"))) for out in (undisturbed, disturbed)]
    for manifest in manifests:
        manifest.pop("written_by")
    assert manifests[0] == manifests[1]  # files by name, rows and SHA-256
    rows = [_rows(out, [file["path"] for file in manifests[0]["files"]]) for out in (undisturbed, disturbed)]
    assert rows[0].equals(rows[1])
    ledgers = [pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(out, "ledger.parquet")))) for out in (undisturbed, disturbed)]
    assert ledgers[0].equals(ledgers[1])
    receipts = [_receipts(out) for out in (undisturbed, disturbed)]
    assert receipts[0] == receipts[1]
    tally.compared += Counter(
        {
            "outputs": 1,
            "face rows": rows[0].num_rows,
            "bytes of pictures": sum(len(picture["bytes"]) for picture in rows[0]["image"].to_pylist()),
            "ledger rows": ledgers[0].num_rows,
            "receipts": len(receipts[0]),
        }
    )


def _rows(out: str, paths: list[str]) -> pa.Table:
    return pa.concat_tables(pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(out, path)))) for path in paths)


def _receipts(out: str) -> dict[str, bytes]:
    """By name, with the bytes. A killed writer may leave a temporary file, which is none."""
    entries = storage.list_dir(storage.join(out, "receipts"))
    assert all(re.fullmatch(r".+\.0\.json", entry.name) for entry in entries), entries
    return {entry.name: storage.read_bytes(entry.uri) for entry in entries}
