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
from fault_proxy import FaultProxy

from dfdc_ray import storage
from dfdc_ray.bench.meter import peak_kb
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.corpus.index import build_index
from dfdc_ray.errors import StorageError
from dfdc_ray.preprocess import supervise
from dfdc_ray.preprocess.plan import Video, units
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.supervise import Worker

GIB = 2**30


@pytest.fixture(scope="module")
def settings() -> Settings:
    return settings_of(PreprocessConfig(corpus=("x",), out="y", frames=4))


@pytest.fixture(scope="module")
def light() -> Settings:
    """Without a detector, for children that start faster."""
    return settings_of(PreprocessConfig(corpus=("x",), out="y", frames=4, crop="frame"))


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


def test_memory_of_1080p(shared):
    """A landscape and a portrait clip, at the defaults. The actor beside it takes some 150 MB more; 700 MB is the limit of both."""
    config = PreprocessConfig(corpus=(str(shared / "data" / "dfdc_clips"),), out="y", real_multiplier=1)
    clips = [video for unit in units(build_index(config.corpus)[0]) for video in unit.videos]
    with Worker(settings_of(config), timeout_s=120, memory_bytes=4 * GIB) as worker:
        sizes = {worker.process(clip, None).faces[0]["frame_width"] for clip in clips[:3]}
        assert worker.pid is not None
        assert peak_kb(worker.pid) < 500 * 1024
    assert sizes == {1080, 1920}


def send_to_children(worker: Worker, what: signal.Signals, *, times: int, stage: str | None = None) -> threading.Thread:
    """Send a signal to each of the next children shortly after it got a video, or as soon as it is in this stage."""

    def run() -> None:
        hit: set[int] = set()
        while len(hit) < times:
            if worker.pid and worker.pid not in hit and worker.busy and stage in (None, worker._stage):
                time.sleep(0.0 if stage else 0.02)
                hit.add(worker.pid)
                os.kill(worker.pid, what)
            time.sleep(0.002)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_stalling_video_ends_as_poison_and_the_next_goes_on(settings, video):
    with Worker(settings, timeout_s=2, memory_bytes=4 * GIB) as worker:
        send_to_children(worker, signal.SIGSTOP, times=2, stage="detect")  # while it reads, the storage would be to blame
        bad = worker.process(video, None)
        worker.timeout_s = 60
        good = worker.process(video, None)
    assert bad.ledger["status"] == "poison"
    assert bad.ledger["stage"] in ("open", "probe", "decode", "detect", "crop")
    assert "took longer than 2 s" in bad.ledger["error"]
    assert good.ledger["status"] == "ok"


def dying_child(path: Path, what: signal.Signals, *, times: int) -> list[str]:
    """The command of a child that dies by this signal once it has a video, and so do those after it; then it is the real one.

    A signal sent by a thread of the test may find that a short video is done already.
    """
    path.write_text(
        "import os, sys\n"
        "from multiprocessing.connection import Connection\n"
        f"with open({str(path.with_suffix('.deaths'))!r}, 'a+') as deaths:\n"
        "    died = deaths.tell()\n"
        f"    deaths.write('x' if died < {times} else '')\n"
        f"if died >= {times}:\n"
        f"    os.execv(sys.executable, [*{supervise._CHILD!r}, sys.argv[1]])\n"
        "connection = Connection(int(sys.argv[1]))\n"
        "connection.recv(); connection.send(('ready',)); connection.recv()\n"
        f"os.kill(os.getpid(), {int(what)})\n"
    )
    return [sys.executable, str(path)]


def test_four_kills_from_outside_do_not_condemn_the_video(light, video, monkeypatch, tmp_path):
    """A machine that shuts down, or the kernel short of memory, kills what is not to blame."""
    with Worker(light, timeout_s=60, memory_bytes=4 * GIB, pause_s=0.01) as worker:
        undisturbed = worker.process(video, None)
        worker.stop()
        monkeypatch.setattr(supervise, "_CHILD", dying_child(tmp_path / "child.py", signal.SIGKILL, times=4))
        result = worker.process(video, None)
    assert (tmp_path / "child.deaths").read_text() == "xxxx"
    assert result.ledger == undisturbed.ledger
    assert result.faces == undisturbed.faces


def test_a_video_whose_process_is_killed_whenever_it_is_tried_is_poison(light, video, monkeypatch, tmp_path):
    """As the kernel does where a video exhausts the machine's memory: the tries end, with pauses that grow."""
    monkeypatch.setattr(supervise, "_CHILD", dying_child(tmp_path / "child.py", signal.SIGKILL, times=5))
    with Worker(light, timeout_s=60, memory_bytes=4 * GIB, pause_s=0.1) as worker:
        start = time.monotonic()
        result = worker.process(video, None)
        took = time.monotonic() - start
        after = worker.process(video, None)
    assert result.ledger["status"] == "poison"
    assert result.ledger["error"].startswith("its process failed 5 times: was killed by SIGKILL")
    assert took > 0.1 + 0.2 + 0.4 + 0.8
    assert after.ledger["status"] == "ok"


def test_a_video_that_crashes_its_process_twice_is_poison(light, video, monkeypatch, tmp_path):
    monkeypatch.setattr(supervise, "_CHILD", dying_child(tmp_path / "child.py", signal.SIGSEGV, times=2))
    with Worker(light, timeout_s=60, memory_bytes=4 * GIB) as worker:
        result = worker.process(video, None)
        after = worker.process(video, None)
    assert result.ledger["status"] == "poison"
    assert "failed 2 times: was killed by SIGSEGV" in result.ledger["error"]
    assert after.ledger["status"] == "ok"


def test_where_people_wait_one_crash_is_enough(light, video, monkeypatch, tmp_path):
    monkeypatch.setattr(supervise, "_CHILD", dying_child(tmp_path / "child.py", signal.SIGSEGV, times=1))
    with Worker(light, timeout_s=60, memory_bytes=4 * GIB, faults=1) as worker:
        result = worker.process(video, None)
    assert (result.ledger["status"], result.ledger["error"]) == ("poison", "its process failed once: was killed by SIGSEGV, in stage open")


def test_a_video_that_nobody_waits_for_any_more_is_given_up_whatever_it_is_at(light, video, monkeypatch, tmp_path):
    monkeypatch.setattr(supervise, "_CHILD", fake_child(tmp_path / "child.py", "decode", 60.0))
    waited = []

    def wait():
        waited.append(time.monotonic())
        if len(waited) == 2:
            raise KeyError

    with Worker(light, timeout_s=60, memory_bytes=4 * GIB, on_wait=wait) as worker:
        worker._started()
        start = time.monotonic()
        with pytest.raises(KeyError):
            worker.process(video, None)
        assert time.monotonic() - start < 20
        assert worker.pid is None


def test_a_death_between_two_videos_charges_neither(light, video):
    with Worker(light, timeout_s=60, memory_bytes=4 * GIB, kills=1) as worker:
        first = worker.process(video, None)
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # it is dead, with all its threads, and not yet noticed
        second = worker.process(video, None)
    assert first.ledger == second.ledger
    assert second.ledger["status"] == "ok"


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 11)", "time.sleep(600)"], ids=["dies", "stalls"])
def test_a_child_that_stops_in_the_midst_of_its_answer(ending, light, video, monkeypatch, tmp_path):
    program = tmp_path / "child.py"
    program.write_text(
        "import os, struct, sys, time\n"
        "from multiprocessing.connection import Connection\n"
        "connection = Connection(int(sys.argv[1]))\n"
        "connection.recv(); connection.send(('ready',)); connection.recv()\n"
        "os.write(connection.fileno(), struct.pack('!i', 1000) + b'too few')\n" + ending
    )
    monkeypatch.setattr(supervise, "_CHILD", [sys.executable, str(program)])
    monkeypatch.setattr(supervise, "_STALL_S", 1)
    with Worker(light, timeout_s=60, memory_bytes=4 * GIB) as worker:
        result = worker.process(video, None)
    assert result.ledger["status"] == "poison"
    assert ("was killed by SIGSEGV" if "kill" in ending else "stopped answering") in result.ledger["error"]


def fake_child(path: Path, *steps: str | float) -> list[str]:
    """The command of a child that, given a video, tells of stages and sleeps for seconds, in that order, and answers None."""
    said = [f"time.sleep({step})" if isinstance(step, float) else f"connection.send(('stage', '{step}'))" for step in steps]
    path.write_text(
        "import sys, time\n"
        "from multiprocessing.connection import Connection\n"
        "connection = Connection(int(sys.argv[1]))\n"
        "connection.recv(); connection.send(('ready',)); connection.recv()\n" + "\n".join(said) + "\nconnection.send(('result', None))\n"
    )
    return [sys.executable, str(path)]


def test_a_slow_storage_does_not_use_up_the_videos_time(light, video, monkeypatch, tmp_path):
    monkeypatch.setattr(supervise, "_CHILD", fake_child(tmp_path / "child.py", 0.7, "probe", 0.7, "open", 0.7, "decode", 0.7))
    with Worker(light, timeout_s=2, memory_bytes=4 * GIB) as worker:
        assert worker.process(video, None) is None


def test_a_storage_that_hangs_in_mid_video_is_not_the_videos_fault(light, video, monkeypatch, tmp_path):
    monkeypatch.setattr(supervise, "_CHILD", fake_child(tmp_path / "child.py", 0.2, "decode", 0.2, "open", 60.0))
    with Worker(light, timeout_s=1, memory_bytes=4 * GIB) as worker:
        with pytest.raises(StorageError, match="could not be read within 1 s"):
            worker.process(video, None)
        assert worker.pid is None


@pytest.mark.s3
def test_a_large_video_that_drips_from_s3_is_not_done_rather_than_poison(light, video, s3, tmp_path):
    """Above 64 MB a video is read while it is decoded, which takes 3 s here."""
    path = tmp_path / "large.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8))))
        container.mux(stream.encode())
    content = path.read_bytes()
    moov = content.index(b"moov") - 4
    free = (80 << 20).to_bytes(4, "big") + b"free" + bytes((80 << 20) - 8)
    uri = storage.join(s3.uri, "large.mp4")
    storage.write_bytes(uri, content[:moov] + free + content[moov:])
    large = replace(video, uri=uri)
    with FaultProxy(s3.endpoint, rate=1, seed=0, faults=("slow",), slow_s=1.0) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with Worker(light, timeout_s=60, memory_bytes=4 * GIB) as worker:
            assert worker.process(large, None).ledger["status"] == "ok"
            assert proxy.faulted["slow"] == 3
            worker.timeout_s = 1.6
            with pytest.raises(StorageError, match="could not be read within"):
                worker.process(large, None)


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
