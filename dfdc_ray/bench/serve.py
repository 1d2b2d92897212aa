"""How a running score page bears many uploads at once: time to the answer and to the verdict, and the memory of its processes.

    dfdc-ray serve --checkpoint out/train/best &
    dfdc-ray bench serve --url http://127.0.0.1:8000 --video clip.mp4 --out out/bench

Memory is looked at where the server runs on this machine: of the process that listens, all above it up to the `dfdc-ray serve` command, and
all below that. It is the proportional set size (a page that n processes share counts 1/n in each).
"""

import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import requests
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.bench.config import BenchServeConfig
from dfdc_ray.bench.machine import machine
from dfdc_ray.console import Work, console, markdown_table
from dfdc_ray.errors import UserError

_POLL_S = 0.25
_MEMORY_EVERY_S = 0.5


@dataclass(frozen=True)
class Answered:
    """One upload. Seconds since the first one began, but answer_s since its own beginning; state and status as the server gave them."""

    status: int
    answer_s: float
    answered_at: float
    state: str
    verdict_s: float  # since its own beginning
    verdict_at: float


def serve(config: BenchServeConfig) -> None:
    """The `bench serve` command: a table, bench_serve.json and .md under `out`. UserError where nothing answers."""
    if config.requests < 1 or config.parallel < 1:
        raise UserError("--requests and --parallel: at least 1.")
    path, url = Path(config.video), config.url.rstrip("/")
    if not path.is_file():
        raise UserError(f"--video {config.video}: there is no such file.")
    try:
        about = requests.get(f"{url}/api/model", timeout=20).json()
    except (requests.RequestException, ValueError) as error:
        raise UserError(f"--url {config.url}: no score page answers there. Start it with `dfdc-ray serve`.") from error
    data = path.read_bytes()
    started = time.monotonic()
    with Work("bench", total=config.requests, unit="videos") as work, _Memory(_processes(url)) as memory:

        def one(_: int) -> Answered:
            answered = _send(url, path.name, data, started, config.timeout_s)
            work.advance()
            return answered

        with ThreadPoolExecutor(config.parallel) as pool:
            found = list(pool.map(one, range(config.requests)))
    _write(config, found, memory, about, len(data))


def _send(url: str, name: str, data: bytes, started: float, timeout_s: float) -> Answered:
    before = time.monotonic()
    answer = requests.post(f"{url}/api/videos", files={"file": (name, data)}, timeout=timeout_s)
    answered = time.monotonic()
    state = "refused"
    while answer.status_code == 202:
        state = requests.get(f"{url}/api/videos/{answer.json()['id']}", timeout=timeout_s).json()["state"]
        if state in ("done", "failed"):
            break
        if time.monotonic() - started > timeout_s:
            raise UserError(f"Not all verdicts came within {timeout_s:g} s (--timeout-s).")
        time.sleep(_POLL_S)
    now = time.monotonic()
    return Answered(answer.status_code, answered - before, answered - started, state, now - before, now - started)


def _processes(url: str) -> list[psutil.Process]:
    """Of the server, if it is on this machine and this user's."""
    try:
        listening = [c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == urlsplit(url).port]
        (pid,) = {pid for pid in listening if pid}
        top = psutil.Process(pid)
        for above in top.parents():
            if "serve" in above.cmdline():
                top = above
        return [top, *top.children(recursive=True)]
    except (ValueError, psutil.Error):
        return []


class _Memory:
    """The processes' memory together, MB: before and at most while the block runs; nan where they are not known."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self.processes = processes
        self.before_mb = self.peak_mb = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_MEMORY_EVERY_S):
            self.peak_mb = max(self.peak_mb, self._now())

    def _now(self) -> float:
        found = {child for process in self.processes for child in _below(process)}
        return sum(map(_pss, found)) / 1e6 if found else float("nan")


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _write(config: BenchServeConfig, found: list[Answered], memory: _Memory, about: dict[str, Any], size: int) -> None:
    taken = [one for one in found if one.status == 202]
    if not taken:
        raise UserError(f"The server took none of {len(found)} uploads (it answered {found[0].status}).")
    ends = f"{len(taken)} / {_count(taken, 'done')} / {_count(taken, 'failed')} / {len(found) - len(taken)}"
    rows = {
        "uploads/s": f"{len(taken) / max(one.answered_at for one in taken):.2f}",
        "videos/s": f"{len(taken) / max(one.verdict_at for one in taken):.3f}",
        "answer to an upload, p50 / p95": _two([one.answer_s for one in taken]),
        "verdict, p50 / p95": _two([one.verdict_s for one in taken]),
        "taken / done / failed / refused": ends,
        "memory before / at most": f"{memory.before_mb:.0f} MB / {memory.peak_mb:.0f} MB",
    }
    machine_is = machine()
    title = (
        f"{len(found)} uploads of {size / 1e6:.1f} MB, {config.parallel} at a time; {about['model']}, {about['frames']} frames a video; "
        f"{machine_is['cores']} x {machine_is['cpu']}"
    )
    table = Table("", "", title=title)
    for row in rows.items():
        table.add_row(*row)
    console.print(table)
    result = {
        "date": date.today().isoformat(),
        "machine": machine_is,
        "config": asdict(config) | {"video": Path(config.video).name},
        "model": about,
        "bytes": size,
        "memory_mb": {"before": memory.before_mb, "peak": memory.peak_mb},
        "summary": rows,
        "uploads": [asdict(one) for one in found],
    }
    storage.make_dirs(config.out)
    page = f"{title}\n\n{markdown_table(['what', 'measured'], rows.items())}"
    storage.write_bytes(storage.join(config.out, "bench_serve.md"), page.encode())
    storage.write_bytes(storage.join(config.out, "bench_serve.json"), json.dumps(result, indent=1).encode())


def _two(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s / {np.percentile(seconds, 95):.2f} s"


def _count(taken: list[Answered], state: str) -> int:
    return sum(one.state == state for one in taken)
