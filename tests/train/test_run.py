"""Training on Ray Train: two workers over gloo, and the way back from interruptions."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers import write_face_shards

from dfdc_ray.config import TrainConfig
from dfdc_ray.errors import UserError
from dfdc_ray.shards.dataset import Batch
from dfdc_ray.train import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    """A Ray of four CPUs on this machine, in a folder with a short name (its sockets' paths are limited)."""
    import ray

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=4, include_dashboard=False, _temp_dir=folder, object_store_memory=250e6)
        yield
        ray.shutdown()


def _config(folder: Path, **changes: object) -> TrainConfig:
    options = {"split": "parts:0-2/3/4", "weights": "none", "epochs": 1, "batch_size": 24, "image_size": 32, "learning_rate": 1e-3}
    return TrainConfig(**{"faces": str(folder / "faces"), "out": str(folder / "out")} | options | changes)


def test_two_workers_then_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, from relative paths; then the finished run does nothing, with another number of workers."""
    from dfdc_ray.train.loop import train_loop
    from dfdc_ray.train.plan import prepare
    from dfdc_ray.train.run import train

    write_face_shards(tmp_path / "faces", families=5)
    monkeypatch.chdir(tmp_path)
    config = _config(Path(), workers=2, cache="cache")
    interrupt = signal.getsignal(signal.SIGINT)
    train(config)
    assert signal.getsignal(signal.SIGINT) is interrupt  # Ctrl-C after a training is not Ray's
    assert len(list((tmp_path / "cache").glob("*.parquet"))) == 4  # of training and validation
    written = capsys.readouterr()
    assert "Reporting training result" not in written.out + written.err  # Ray's own words for what we print as a line
    assert "epoch 1 of 1 done" in written.out + written.err
    assert "* best, by the lowest validation video log loss" in written.out
    assert re.search(r"\d+ real and \d+ fake videos of \d+ groups", written.out)  # on which that was taken
    with_two = checkpoint.load(f"{tmp_path}/out/best").config
    alone = _config(tmp_path, out=str(tmp_path / "alone"))
    history = train_loop(alone, prepare(alone))
    assert with_two["step"] == history[-1]["step"] == 2
    # The same samples in the same batches; what differs is batch norm, which sees half a batch.
    assert with_two["history"][0]["train_loss"] == pytest.approx(history[0]["train_loss"], rel=0.3)

    capsys.readouterr()
    train(replace(config, workers=1))
    assert "nothing to do" in capsys.readouterr().out


def test_ray_data_makes_the_same_batches_in_the_same_order(tmp_path: Path) -> None:
    """Two actors of which now one, now the other is late: from the midst of an epoch through the next, for one rank of two.

    Each epoch has a pipeline of its own, after that of the one before.
    """
    import torch

    from dfdc_ray.shards.dataset import FaceDataset
    from dfdc_ray.shards.manifest import read_manifest
    from dfdc_ray.shards.order import FixedOrder, ShuffledOrder
    from dfdc_ray.shards.rows import read_rows
    from dfdc_ray.train.run import _Ingest

    def late(picture: torch.Tensor) -> torch.Tensor:  # within the test, so that it travels with the dataset
        time.sleep(0.3 * float(torch.rand(())) ** 4)
        return picture[:, :8, :8].float() + torch.rand(3, 8, 8)

    rows = read_rows(read_manifest(str(write_face_shards(tmp_path / "faces", families=3))))
    order = ShuffledOrder(rows, 8, seed=0, epochs=2, start=16, rank=1, world_size=2)
    assert len(order) == 10
    training = FaceDataset(rows, late, order)
    _same(_Ingest(training, order.steps_per_epoch, actors=2), training)
    fixed = FixedOrder(len(rows), 7)
    validation = FaceDataset(rows, lambda picture: picture[:, :8, :8].float(), fixed)
    through = _Ingest(validation, len(fixed), actors=1)
    _same(through, validation)


def _same(found: Iterable[Batch], expected: Iterable[Batch]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert all((x == y).all() for x, y in zip(a, b, strict=True))


def test_a_damaged_shard_that_ray_data_meets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the caller's own setting, which Ray Train hands to its workers, is to go on without what fails."""
    import pyarrow.parquet as pq
    import ray.data

    from dfdc_ray.shards.dataset import FaceDataset
    from dfdc_ray.shards.manifest import read_manifest
    from dfdc_ray.shards.order import FixedOrder
    from dfdc_ray.shards.rows import read_rows
    from dfdc_ray.train.run import _Ingest

    manifest = read_manifest(str(write_face_shards(tmp_path / "faces", families=3)))
    rows = read_rows(manifest)
    for file in manifest.files:
        pictures = [image["bytes"] for image in pq.read_table(file.uri)["image"].to_pylist()]
        data = Path(file.uri).read_bytes()
        at = data.index(pictures[0])
        Path(file.uri).write_bytes(data[:at] + bytes(len(pictures[0])) + data[at + len(pictures[0]) :])
    monkeypatch.setattr(ray.data.DataContext.get_current(), "max_errored_blocks", -1)
    dataset = FaceDataset(rows, lambda picture: picture[:, :8, :8].float(), FixedOrder(len(rows), 8))
    with pytest.raises(UserError, match="is damaged"):
        list(_Ingest(dataset, len(dataset.order), actors=1))


def test_a_training_that_gets_on_between_losses_may_have_any_number_of_them(tmp_path: Path) -> None:
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.exceptions import WorkerGroupError

    from dfdc_ray.train.run import MAX_FAILURES, _FailurePolicy

    policy, lost = _FailurePolicy(str(tmp_path)), WorkerGroupError("lost", {0: RuntimeError("killed")})
    for step in range(3):
        (tmp_path / checkpoint.step_name(step)).mkdir()
        assert [policy.make_decision(lost) for _ in range(MAX_FAILURES)] == [FailureDecision.RETRY] * MAX_FAILURES
    assert policy.make_decision(lost) == FailureDecision.RAISE
    (tmp_path / checkpoint.step_name(3)).mkdir()
    wrong = WorkerGroupError("wrong", {0: UserError("put it right")})
    assert policy.make_decision(wrong) == FailureDecision.RAISE


def _same_as_undisturbed(config: TrainConfig) -> None:
    """Whether a run that is done ended with the weights of one that no Ray and nobody disturbed."""
    from dfdc_ray.train.loop import train_loop
    from dfdc_ray.train.plan import checkpoints, prepare

    whole = replace(config, out=f"{config.out}-undisturbed", ingest_actors=0, checkpoint_minutes=15.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker of one CPU
    try:
        train_loop(whole, prepare(whole))
    finally:
        torch.set_num_threads(threads)
    found, expected = (checkpoint.newest(checkpoints(each)) for each in (config, whole))
    assert found is not None
    assert expected is not None
    steps = [[(e["epoch"], e["step"], e["train_loss"]) for e in each.config["history"]] for each in (found, expected)]
    assert steps[0] == steps[1]
    assert all(torch.equal(found.weights[name], weight) for name, weight in expected.weights.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    """Killed after the first checkpoint within an epoch, fed by Ray Data: Ray starts another, which goes on from there to the end."""
    import psutil

    from dfdc_ray.train.run import train

    write_face_shards(tmp_path / "faces", families=5)
    config = _config(tmp_path, epochs=3, batch_size=6, checkpoint_minutes=1e-9, ingest_actors=1)
    killed: list[int] = []
    newest: list[str] = []
    after: set[str] = set()
    over = threading.Event()

    def kill() -> None:
        while not list((tmp_path / "out" / "checkpoints").glob("step-*3")):
            time.sleep(0.05)
        mine = psutil.Process().children(recursive=True)
        worker = next(p for p in mine if "".join(p.cmdline()).startswith("ray::RayTrainWorker"))
        killed.append(worker.pid)
        worker.kill()
        worker.wait(10)
        newest.append(checkpoint.steps(f"{tmp_path}/out/checkpoints")[0])
        _watch(tmp_path / "out" / "checkpoints", after, over)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    train(config)
    over.set()
    thread.join(timeout=5)
    assert killed
    assert len(after) > 4  # each is there for two steps of some tenths of a second
    assert min(after) > newest[0]  # it did not begin again
    _same_as_undisturbed(config)


def _watch(checkpoints: Path, seen: set[str], over: threading.Event) -> None:
    """Note the names of all checkpoints that are written from now on, until it is over."""
    since = time.time()
    while not over.wait(0.02):
        for path in checkpoints.glob("step-*"):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                if (path / "config.json").stat().st_mtime > since:
                    seen.add(path.name)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_driver_is_started_again(tmp_path: Path) -> None:
    """With all that Ray started for it. The same command goes on from the newest checkpoint."""
    import psutil

    write_face_shards(tmp_path / "faces", families=5)
    config = _config(tmp_path, epochs=3, batch_size=6, checkpoint_minutes=1e-9)
    code = "import json, sys; from dfdc_ray.config import TrainConfig as C; from dfdc_ray.train.run import train; "
    code += "train(C(**json.loads(sys.argv[1])))"
    command = [sys.executable, "-c", code, json.dumps(asdict(config))]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list((tmp_path / "out" / "checkpoints").glob("step-*3")):
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        of_driver = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
        driver.kill()
        driver.wait()
        for process in of_driver:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    cut = checkpoint.newest(f"{tmp_path}/out/checkpoints")
    assert cut is not None
    assert cut.config["step"] < 24
    after: set[str] = set()
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(tmp_path / "out" / "checkpoints", after, over), daemon=True)
    thread.start()
    subprocess.run(command, env=environment, capture_output=True, timeout=300, check=True)
    over.set()
    thread.join(timeout=5)
    assert len(after) > 4
    assert min(after) > checkpoint.step_name(cut.config["step"])  # it did not begin again
    _same_as_undisturbed(config)


def test_what_a_person_must_put_right_is_not_tried_again(tmp_path: Path) -> None:
    """A learning rate at which training diverges: said once, not after every one of the tries that crashes get."""
    from dfdc_ray.train.run import train

    write_face_shards(tmp_path / "faces", families=5)
    with pytest.raises(UserError, match="Training diverged"):
        train(_config(tmp_path, learning_rate=1e30))
    assert not (tmp_path / "out" / "best").exists()
    attempts = list((tmp_path / "out" / "tensorboard").glob("**/events*"))
    assert len(attempts) == 1


def test_too_few_cpus_are_refused(tmp_path: Path) -> None:
    from dfdc_ray.train.run import train

    write_face_shards(tmp_path / "faces", families=5)
    with pytest.raises(UserError, match=r"64 CPU \(there are"):
        train(_config(tmp_path, batch_size=128, workers=64))
