"""The child process under real trouble: killed, stalled, out of memory, its supervisor gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from dfdc_ray.config import PreprocessConfig
from dfdc_ray.corpus.index import build_index
from dfdc_ray.preprocess.plan import Video, units
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.supervise import Worker

GIB = 2**30


@pytest.fixture(scope="module")
def settings() -> Settings:
    return settings_of(PreprocessConfig(corpus=("x",), out="y", frames=4))


@pytest.fixture(scope="module")
def video(small_corpus) -> Video:
    return units(build_index([str(small_corpus)])[0])[0].videos[0]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_one_child_does_many_videos(settings, video):
    with Worker(settings, timeout_s=60, memory_bytes=4 * GIB) as worker:
        first = worker.process(video, None)
        pid = worker.pid
        second = worker.process(video, None)
        assert worker.pid == pid
    assert first.ledger["status"] == "ok"
    assert first.faces == second.faces
    assert pid is not None
    assert not alive(pid)


def send_to_children(worker: Worker, what: signal.Signals, *, times: int) -> threading.Thread:
    """Send a signal to each of the next children shortly after it got a video."""

    def run() -> None:
        hit: set[int] = set()
        while len(hit) < times:
            if worker.pid and worker.pid not in hit and worker.busy:
                time.sleep(0.02)
                hit.add(worker.pid)
                os.kill(worker.pid, what)
            time.sleep(0.002)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_stalling_video_ends_as_poison_and_the_next_goes_on(settings, video):
    with Worker(settings, timeout_s=2, memory_bytes=4 * GIB) as worker:
        send_to_children(worker, signal.SIGSTOP, times=2)
        bad = worker.process(video, None)
        worker.timeout_s = 60
        good = worker.process(video, None)
    assert bad.ledger["status"] == "poison"
    assert bad.ledger["stage"] in ("open", "probe", "decode", "detect", "crop")
    assert "took longer than 2 s" in bad.ledger["error"]
    assert good.ledger["status"] == "ok"


def test_a_child_killed_once_does_not_condemn_the_video(settings, video):
    with Worker(settings, timeout_s=60, memory_bytes=4 * GIB) as worker:
        killer = send_to_children(worker, signal.SIGKILL, times=1)
        result = worker.process(video, None)
        killer.join(10)
    assert not killer.is_alive()
    assert result.ledger["status"] == "ok"


def test_a_video_whose_process_dies_twice_is_poison(settings, video):
    with Worker(settings, timeout_s=60, memory_bytes=4 * GIB) as worker:
        send_to_children(worker, signal.SIGKILL, times=2)
        result = worker.process(video, None)
        after = worker.process(video, None)
    assert result.ledger["status"] == "poison"
    assert "SIGKILL" in result.ledger["error"]
    assert after.ledger["status"] == "ok"


def test_memory_is_limited(settings, video, tmp_path):
    path = tmp_path / "large.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 15360, 8640, "yuv420p"
        for i in range(2):
            picture = np.full((8640, 15360, 3), i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    with Worker(settings, timeout_s=60, memory_bytes=800 * 2**20) as worker:
        result = worker.process(replace(video, uri=str(path)), None)
        after = worker.process(video, None)
    assert result.ledger["status"] in ("error", "poison")
    assert result.faces == []
    assert after.ledger["status"] == "ok"


def test_a_child_does_not_outlive_a_killed_supervisor(small_corpus):
    program = (
        "import sys, time\n"
        "from dfdc_ray.config import PreprocessConfig\n"
        "from dfdc_ray.preprocess.settings import Settings, settings_of\n"
        "from dfdc_ray.preprocess.supervise import Worker\n"
        "w = Worker(settings_of(PreprocessConfig(corpus=('x',), out='y')), timeout_s=60, memory_bytes=4 * 2**30)\n"
        "w._started(); print(w.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert alive(pid)
        supervisor.kill()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
