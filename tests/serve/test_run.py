"""The command itself: what it refuses before Ray starts, and the whole way through Ray Serve, ended by Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from serving import verdict

from dfdc_ray import cli
from dfdc_ray.bench.config import BenchServeConfig
from dfdc_ray.bench.serve import serve as bench
from dfdc_ray.config import ServeConfig
from dfdc_ray.serve.run import Page, hosts, is_loopback, uploads_folder

LIMIT_S = 200


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])


def test_what_cannot_work_is_said_before_ray(best: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("dfdc_ray.cluster.run.connect", lambda: pytest.fail("Ray was started"))

    def said(*options: str) -> str:
        assert cli.main(["serve", *options]) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error.replace("\n", " ")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}: Address already in use" in said("--checkpoint", str(best), "--port", port)
    port = str(free_port())
    assert "checkpoint" in said("--checkpoint", str(best / "nowhere"), "--port", port)
    for option, value in (("--max-mb", "0"), ("--video-memory-mb", "-1"), ("--max-seconds", "inf"), ("--max-mb", "nan")):
        assert f"{option} {value}: must be above 0" in said("--checkpoint", str(best), option, value)
    assert "Cannot listen on 203.0.113.7" in said("--checkpoint", str(best), "--host", "203.0.113.7")
    monkeypatch.setenv("RAY_ADDRESS", "x")
    assert "unset RAY_ADDRESS" in said("--checkpoint", str(best))


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("192.0.2.1", False)]
)
def test_what_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_loopback(host) == local


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, ("localhost", "127.0.0.1", "::1", "127.0.0.1")),
        ({"host": "0.0.0.0"}, None),
        ({"name": ("Page.example",)}, ("localhost", "127.0.0.1", "::1", "127.0.0.1", "page.example")),
        ({"host": "0.0.0.0", "name": ("a", "b")}, ("localhost", "127.0.0.1", "::1", "0.0.0.0", "a", "b")),
    ],
)
def test_by_which_names_it_may_be_asked_for(options: dict[str, Any], known: tuple[str, ...] | None) -> None:
    assert hosts(ServeConfig(checkpoint=("unused",), **options)) == known


def test_uploads_of_a_killed_server_go_when_the_next_one_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "of somebody else").mkdir()
    (tmp_path / "dfdc-ray-serve-link").symlink_to("of somebody else")
    kill = (
        "import os; from dfdc_ray.serve.run import uploads_folder\nwith uploads_folder() as f: open(f + '/x', 'w'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", kill], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False, timeout=100)
    (left,) = tmp_path.glob("dfdc-ray-serve-*/x")
    with uploads_folder() as first, uploads_folder() as second:  # of two servers that run
        assert not left.exists()
        assert [Path(folder).stat().st_mode & 0o777 for folder in (first, second)] == [0o700, 0o700]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dfdc-ray-serve-link", "of somebody else"]


def test_a_replica_whose_worker_or_server_has_ended_is_not_healthy(best: Path, tmp_path: Path) -> None:
    page = Page(ServeConfig(checkpoint=(str(best),), port=free_port()), str(tmp_path))
    page.check_health()
    page.app.state.jobs.close()
    with pytest.raises(RuntimeError, match="worker"):
        page.check_health()
    page.server.should_exit = True
    page.thread.join(20)
    with pytest.raises(RuntimeError, match="HTTP"):
        page.check_health()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files, of so short a name that Ray's sockets may lie in it."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.timeout(LIMIT_S + 60)
def test_from_the_command_to_a_verdict_and_a_clean_end(best: Path, folder: Path, tmp_path: Path, short: Path) -> None:
    """Also the bench of it, and an upload that waits when the end comes."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled", "TMPDIR": str(short)}
    port = free_port()
    command = [sys.executable, "-m", "dfdc_ray.cli", "serve", "--checkpoint", str(best), "--port", str(port), "--frames", "4"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = threading.Timer(LIMIT_S, server.kill)
    deadline.start()
    try:
        assert server.stdout is not None
        said = ""
        while "reach it" not in said:
            line = server.stdout.readline()
            assert line, f"it ended: {said}"
            said += line
        url = f"http://127.0.0.1:{port}"
        assert f"{url}/" in said
        (uploads,) = short.glob("dfdc-ray-serve-*")
        assert uploads.stat().st_mode & 0o777 == 0o700
        sent = requests.post(f"{url}/api/videos", files={"file": (folder / "face.mp4").open("rb")}, timeout=60)
        status = verdict(url, sent.json()["id"], timeout_s=LIMIT_S)
        assert (status["state"], status["name"]) == ("done", "face.mp4")
        assert status["result"]["videos"][0]["verdict"] in ("REAL", "FAKE")
        assert list(uploads.iterdir()) == []
        bench(BenchServeConfig(url=url, video=str(folder / "face.mp4"), out=str(tmp_path / "bench"), requests=3, parallel=3))
        table = (tmp_path / "bench" / "bench_serve.md").read_text()
        assert "3 / 3 / 0 / 0" in table
        assert "nan" not in table
        children = psutil.Process(server.pid).children(recursive=True)
        assert requests.post(f"{url}/api/videos", files={"file": b"x" * 100_000}, timeout=60).status_code == 202
        server.send_signal(signal.SIGINT)
        said += server.communicate(timeout=100)[0]
        assert server.returncode == 0, said
        assert "Stopping" in said
        assert "Traceback" not in said
        _, alive = psutil.wait_procs(children, timeout=20)
        assert alive == []
        assert list(short.glob("dfdc-ray-serve-*")) == []
    finally:
        deadline.cancel()
        server.kill()
        server.wait()
