"""The scripts in jobs/ as Ray jobs on a cluster that was started by hand: they work, and their exit codes come through.

That of preprocessing at work: chaos/test_hosts.py, which needs root.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import upload
from s3_server import assert_no_secret

from dfdc_ray.train import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    """An ephemeral port: Ray keeps 10002 to 19999 for its workers."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(s3_server) -> Iterator[tuple[dict[str, str], Path]]:
    """The environment in which `ray job submit` reaches a head node of this test's own, with its way to S3, and Ray's folder there."""
    temporary = tempfile.mkdtemp(prefix="rj", dir="/tmp")  # short: it holds sockets
    gcs, dashboard = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # a job's `python` is the head's
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}", "--dashboard-agent-listen-port=0"]
    start = [RAY, "start", "--head", "--block", "--num-cpus=3", "--node-ip-address=127.0.0.1", "--object-store-memory=150000000"]
    head = subprocess.Popen(
        [*start, *ports, f"--temp-dir={temporary}"],
        env=environment | s3_server.variables,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 90
        while subprocess.run([RAY, "job", "list"], env=environment, capture_output=True, timeout=60, check=False).returncode:
            assert head.poll() is None, head.stdout.read() if head.stdout else ""
            assert time.monotonic() < deadline, "the head node did not come up"
        yield environment, Path(temporary)
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(3)
        subprocess.run(["pkill", "-9", "-f", temporary], check=False)
        shutil.rmtree(temporary, ignore_errors=True)


def submit(environment: dict[str, str], *command: str) -> tuple[int, str]:
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(
            [RAY, "job", "submit", "--working-dir", ".", "--", "python", *command],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        output = done.stdout + done.stderr
        if "No available agent to submit job" not in output or time.monotonic() > deadline:  # it comes up after the head does
            return done.returncode, output
        time.sleep(1)


def test_train_as_a_job_from_a_bucket_into_it(cluster, undisturbed, s3):
    upload(undisturbed, f"{s3.uri}/faces")
    environment, folder = cluster
    options = ["--faces", f"{s3.uri}/faces", "--out", f"{s3.uri}/run", "--weights", "none", "--image-size", "32", "--epochs", "1"]
    code, output = submit(environment, "jobs/train.py", *options, "--batch-size", "8", "--split", "parts:0/1/2")
    assert code == 0, output
    config = checkpoint.load(f"{s3.uri}/run/best").config
    assert [entry["epoch"] for entry in config["history"]] == [1]
    assert_no_secret(s3.server, output, s3.uri, folder)


def test_a_job_that_fails_says_so_by_its_exit_code(cluster, tmp_path):
    code, output = submit(cluster[0], "jobs/preprocess.py", "--corpus", str(tmp_path / "nothing"), "--out", str(tmp_path / "out"))
    assert code != 0
    assert "nothing" in output
    assert "Traceback" not in output
