"""Several hosts, S3 as the only storage that they share, token authentication, and hosts that are lost in the midst of the work.

The long form prints, with `-s`, what happened when:    pytest -m slow -s tests/chaos/test_hosts.py
"""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos.chaos import Tally, compare
from chaos.hosts import RayHosts, network
from chaos.nodes import RAY
from fault_proxy import FaultProxy
from helpers import upload

from dfdc_ray import storage
from dfdc_ray.train import checkpoint

ROOT = Path(__file__).resolve().parents[2]
JOB_S = 900.0

pytestmark = [pytest.mark.ray, pytest.mark.s3]


class Story:
    """What happened, with the seconds since the beginning; printed as it happens."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def tell(self, what: str) -> None:
        print(f"hosts: {time.monotonic() - self.began:5.1f} s  {what}", flush=True)


@contextmanager
def ray_hosts(s3) -> Iterator[RayHosts]:
    """A head and no workers yet. The hosts reach S3 at an address of the network's gateway."""
    with network() as net, FaultProxy(s3.endpoint, rate=0, seed=0, host=net.gateway) as gate:
        yield RayHosts(net, s3.server.variables | {"AWS_ENDPOINT_URL": gate.endpoint})


class Job:
    """A submitted job under way."""

    def __init__(self, environment: Mapping[str, str], log: Path, *command: str) -> None:
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [RAY, "job", "submit", "--working-dir", ".", "--", "python", *command],
                env=dict(environment),
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )

    def wait_until(self, true: Callable[[], bool]) -> None:
        """AssertionError if the job ends before."""
        deadline = time.monotonic() + JOB_S
        while not true():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def finish(self) -> str:
        """Its output. AssertionError unless its exit code is 0."""
        assert self.process.wait(JOB_S) == 0, self.log.read_text()
        return self.log.read_text()


def names(uri: str) -> list[str]:
    """What is in a folder, which may not be there yet."""
    try:
        return [entry.name for entry in storage.list_dir(uri)]
    except FileNotFoundError:
        return []


@pytest.mark.timeout(500)
def test_a_host_is_lost_while_preprocessing(small_corpus, undisturbed, s3, tmp_path):
    """The short form: a head, two workers, one of them lost; the other does what is left."""
    upload(small_corpus, f"{s3.uri}/drawn")
    story = Story()
    with ray_hosts(s3) as hosts:
        workers = hosts.add(2, cpus=2)
        story.tell("a head and two workers are up")
        preprocess_and_lose(workers[1], hosts, s3, tmp_path, story)
        stranger = hosts.client | {"RAY_AUTH_TOKEN": "0" * 64}
        refused = subprocess.run([RAY, "job", "list"], env=stranger, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode != 0
        assert "token" in (refused.stdout + refused.stderr).lower()
    tally = Tally()
    compare(str(undisturbed), f"{s3.uri}/faces", tally)
    story.tell(f"identical to the undisturbed run: {dict(tally.compared)}")


def preprocess_and_lose(host, hosts: RayHosts, s3, folder: Path, story: Story) -> None:
    """The job of preprocessing; the host is lost when the first units are done."""
    faces = f"{s3.uri}/faces"
    job = Job(hosts.client, folder / "preprocess.log", "jobs/preprocess.py", "--corpus", f"{s3.uri}/drawn", "--out", faces, "--frames", "2")
    job.wait_until(lambda: bool(names(f"{faces}/receipts")))
    host.kill()
    story.tell(f"preprocess: {host.address} lost, {len(names(f'{faces}/receipts'))} units done")
    job.finish()
    story.tell(f"preprocess: done, {len(names(f'{faces}/receipts'))} units")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_hosts_are_lost_while_preprocessing_and_training(small_corpus, undisturbed, s3, tmp_path):
    """The long form: three workers of two CPUs; one is lost while preprocessing. Then two train, one of them is lost, and is replaced."""
    upload(small_corpus, f"{s3.uri}/drawn")
    story = Story()
    epochs = 6
    with ray_hosts(s3) as hosts:
        workers = hosts.add(3, cpus=2)
        story.tell("a head and three workers are up")
        preprocess_and_lose(workers[2], hosts, s3, tmp_path, story)

        options = ["--faces", f"{s3.uri}/faces", "--out", f"{s3.uri}/run", "--weights", "none", "--image-size", "32"]
        options += ["--split", "parts:0/1/2", "--batch-size", "8", "--epochs", str(epochs), "--workers", "2", "--cpus-per-worker", "2"]
        job = Job(hosts.client, tmp_path / "train.log", "jobs/train.py", *options)
        job.wait_until(lambda: len(names(f"{s3.uri}/run/checkpoints")) >= 2)
        workers[1].kill()
        story.tell(f"train: {workers[1].address} lost, newest checkpoint {names(f'{s3.uri}/run/checkpoints')[-1]}")
        hosts.add(1, cpus=2)
        story.tell("train: a new host in its place")
        job.finish()
    compare(str(undisturbed), f"{s3.uri}/faces", Tally())
    assert names(f"{s3.uri}/run/best")
    history = checkpoint.newest(f"{s3.uri}/run/checkpoints").config["history"]
    steps = history[0]["step"]
    assert [(entry["epoch"], entry["step"]) for entry in history] == [(i + 1, (i + 1) * steps) for i in range(epochs)]
    story.tell(f"train: done, {epochs} epochs of {steps} steps")
