"""Preprocess a corpus on Ray Data: units go to a pool of actors, each commits its units itself; Ray only schedules.

dfdc-ray preprocess --corpus /data/dfdc --out /data/faces
ray job submit --working-dir . -- python jobs/preprocess.py --corpus s3://bucket/dfdc --out s3://bucket/faces

Storage that fails is tried again with pauses, an actor that dies is started again; what is still not done then is named, has no receipt,
and is done by the next run. A receipt is the only thing that counts: not that an actor reported, nor that it lives.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data._internal.execution import streaming_executor_state
from ray.experimental import internal_kv

from dfdc_ray import storage
from dfdc_ray.cluster import run as cluster
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.console import Work, console
from dfdc_ray.corpus.index import build_index, print_counts
from dfdc_ray.corpus.neighbours import folder_of
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.preprocess import coverage, publish
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.patience import patiently, process_patiently
from dfdc_ray.preprocess.plan import Unit, Video, units
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.summary import check_error_share, not_done, print_summary, too_many_errors
from dfdc_ray.preprocess.supervise import Worker
from dfdc_ray.preprocess.unit import Guide, VideoResult, process_unit
from dfdc_ray.storage import Traffic

_POLL_S = 1.0  # how often Ray Data looks around while nothing happens; by itself 10 times a second, which costs 2 % of a core
_DEATHS = 10  # of actors under one unit, before it is left to the next run
MEMORY_PER_ACTOR = 1.5 * 2**30  # bytes that Ray reserves: actor and child together, 1080p


def preprocess(config: PreprocessConfig) -> None:
    """The `preprocess` command. UserError for what can be put right, also when storage or the machine kept units from being done, and when
    more videos went wrong than --max-error-share allows; in both cases after all the rest was done and published.
    """
    settings = settings_of(config)
    _check_limits(config)
    index, counts = build_index(config.corpus)
    print_counts(counts)
    preprocess_index(config, settings, index)


def preprocess_index(config: PreprocessConfig, settings: Settings, index: pa.Table) -> None:
    """The command, from the index on."""
    out = storage.absolute(config.out)
    output = patiently(lambda: rc.open_output(out, settings))
    given = set(pc.unique(index["family_id"]).to_pylist())

    def known() -> list[Unit]:
        return units(patiently(lambda: publish.remember(out, index)))

    planned = [unit for unit in known() if unit.family_id in given]
    work = rc.todo(planned, patiently(output.read), config.retry)
    videos = sum(len(unit.videos) for unit in planned)
    left = sum(len(unit.videos) for unit, _ in work)
    console.print(f"Plan: {len(planned)} units, {videos} videos; {videos - left} done before, {left} to do. Output: {out}", highlight=False)
    if not work:
        console.print("Nothing to do: all of it is done already.")
    start = time.monotonic()
    failures: dict[str, str] = {}
    wanted = {unit.unit_id: generation for unit, generation in work}
    try:
        while work:
            failures |= _run(config, settings, out, work, sizes=_sizes(index, work))
            planned = [unit for unit in known() if unit.family_id in given]
            work = _overtaken(planned, patiently(output.read), besides=failures)
            wanted |= {unit.unit_id: generation for unit, generation in work}
    except (KeyboardInterrupt, SystemExit):  # the latter is what connect() makes of SIGTERM
        console.print("Stopped. Publishing what is done; run the same command again to go on.")
        raise
    finally:  # what is done can be used, however this run ends
        everything = known()
        ledger = patiently(lambda: publish.publish(output, everything, settings, versions=rc.versions()))
    print_summary(ledger, seconds=time.monotonic() - start)
    coverage.write(out)
    planned = [unit for unit in everything if unit.family_id in given]
    undone = _undone(planned, patiently(output.read), wanted, failures)
    wrong = [not_done(undone)] if undone else []
    wrong += too_many_errors(ledger, {video.video_id for unit in planned for video in unit.videos}, config.max_error_share)
    if wrong:
        raise UserError("\n".join(wrong))


def _overtaken(planned: list[Unit], done: dict[str, rc.Receipt], *, besides: dict[str, str]) -> list[tuple[Unit, int]]:
    """What has to be done again, since another run on this output brought more videos of the same families while this one was at work."""
    again = rc.todo([u for u in planned if u.unit_id in done and rc.overtaken(done[u.unit_id], u) and u.unit_id not in besides], done, ())
    if again:
        console.print(f"Another run has changed {len(again)} of these families meanwhile: they are done again.", highlight=False)
    return again


def _undone(planned: list[Unit], done: dict[str, rc.Receipt], wanted: dict[str, int], failures: dict[str, str]) -> dict[str, str]:
    """By unit_id, why a unit has no receipt that counts."""
    unseen = "its worker wrote no receipt that is seen here: --out must be on storage that all nodes share"
    undone: dict[str, str] = {}
    for unit in planned:
        receipt = done.get(unit.unit_id)
        if receipt is None or receipt.generation < wanted.get(unit.unit_id, 0):
            undone[unit.unit_id] = failures.get(unit.unit_id, unseen)
        elif rc.overtaken(receipt, unit):
            undone[unit.unit_id] = failures.get(unit.unit_id, "another run on this output has just changed its family")
    return undone


def _check_limits(config: PreprocessConfig) -> None:
    smallest = {"video_timeout_s": 1, "video_memory_mb": 512}
    for name, least in smallest.items():
        if getattr(config, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least {least}.")
    check_error_share(config.max_error_share)
    if config.workers is not None and config.workers < 1:
        raise UserError(f"--workers {config.workers}: must be at least 1.")


def _run(config: PreprocessConfig, settings: Settings, out: str, work: list[tuple[Unit, int]], *, sizes: dict[str, int]) -> dict[str, str]:
    """Do the units; return the reason by unit_id for those that storage or the machine kept from being done. `sizes`: bytes by unit_id."""
    cluster.connect()
    actors = _actors(config, len(work))
    failures: dict[str, str] = {}
    open_units = {unit.unit_id: _folders(unit) for unit, _ in work}
    faces = bad = 0
    in_a_row: list[str] = []  # places that failed, without a unit done between
    traffic, videos_read, bytes_of_videos = Traffic(), 0, 0
    worker = Worker(settings, timeout_s=config.video_timeout_s, memory_bytes=config.video_memory_mb * 2**20)
    hopeless = False
    with Work("preprocess", total=sum(len(unit.videos) for unit, _ in work), unit="videos") as progress:
        for row in stream(config, settings, out, work, worker=worker, actors=actors):
            faces, bad = faces + row["faces"], bad + row["bad"]
            open_units.pop(row["unit_id"], None)
            if row["failure"]:
                failures[row["unit_id"]] = row["failure"]
                in_a_row += [row["place"]] if row["place"] else []
            else:
                in_a_row = []
            progress.advance(row["videos"], detail=f"{faces} faces, {bad} videos without, {len(failures)} units not done")
            if row["requests"]:
                traffic += Traffic(row["requests"], row["received"])
                videos_read, bytes_of_videos = videos_read + row["videos"], bytes_of_videos + sizes[row["unit_id"]]
            hopeless = len(in_a_row) >= max(8, 2 * actors) and _hopeless(set(in_a_row), out, open_units.values())
            if hopeless:
                break
    if traffic.requests:
        read = f"{traffic.requests} requests, {traffic.bytes / 1e6:.1f} MB read for {videos_read} videos of {bytes_of_videos / 1e6:.1f} MB"
        console.print(f"S3: {read}, {traffic.requests / videos_read:.2f} requests a video", highlight=False, soft_wrap=True)
    reason = f"left out, since {len(in_a_row)} units in a row had failed" if hopeless else "Ray gave it up: its message is above"
    return failures | dict.fromkeys(sorted(open_units), reason)


def _hopeless(failing: set[str], out: str, left: Iterable[set[str]]) -> bool:
    """Whether each further unit would wait for nothing: the output fails, or videos in more than one place, or in the only one left."""
    return out in failing or len(failing) > 1 or all(folders <= failing for folders in left)


def _folders(unit: Unit) -> set[str]:
    return {folder_of(video.uri) for video in unit.videos if video.uri is not None}


def _sizes(index: pa.Table, work: list[tuple[Unit, int]]) -> dict[str, int]:
    """Bytes of each unit's videos, as far as they are in the index."""
    by_video = dict(zip(index["video_id"].to_pylist(), index["size_bytes"].to_pylist(), strict=True))
    return {unit.unit_id: sum(by_video.get(video.video_id) or 0 for video in unit.videos) for unit, _ in work}


def stream(
    config: PreprocessConfig, settings: Settings, out: str, work: list[tuple[Unit, int]], *, worker: Worker, actors: int
) -> Iterator[dict[str, Any]]:
    """What the actors report of each unit (see ProcessUnit), as they get done. `work`: units with the generation to write."""
    items = [{"unit": unit.to_json(), "generation": generation} for unit, generation in work]
    units = ray.data.from_items(items, override_num_blocks=len(items))
    context = units.context  # a copy, for these data alone: training in the same process must not go on without a batch
    context.enable_progress_bars = False  # ours counts videos, theirs blocks
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that its bars are off
    slowest = max(len(unit.videos) for unit, _ in work) * 4 * config.video_timeout_s  # every video and its storage stall, twice
    context.execution_no_progress_timeout_s = int(1800 + slowest)
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = _POLL_S
    context.max_errored_blocks = -1  # a unit that Ray gives up is missed below, and the others go on
    custom: dict[str, Any] = {"resources": {config.resource: 1}} if config.resource else {}
    results = units.map_batches(
        ProcessUnit,
        fn_constructor_kwargs={"settings": settings, "out": out, "worker": worker},
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        memory=MEMORY_PER_ACTOR,
        **custom,
    )
    # Not iter_rows: it keeps three threads busy, and tells Ray the statistics of all blocks every few seconds (docs/benchmarks.md).
    for bundle in results.iter_internal_ref_bundles():
        for block in ray.get(bundle.block_refs):
            yield from block.to_pylist()


def _actors(config: PreprocessConfig, units_left: int) -> int:
    resource = config.resource or "CPU"
    have = int(cluster.capacity(resource)) - (0 if config.resource else 1)  # Ray hangs when actors hold every CPU
    if config.workers is None and have < 1:
        raise UserError(f"The Ray cluster has no {resource} to spare for preprocessing; give --workers to wait for it to grow.")
    actors = min(config.workers or have, units_left)
    if config.workers:
        custom = {config.resource: float(actors)} if config.resource else {}
        cluster.require(cpus=actors + (0 if config.resource else 1), custom=custom)
    return max(1, actors)


class ProcessUnit:
    """One Ray actor: supervises one child process, commits each unit, and reports counts, never pictures."""

    def __init__(self, *, settings: Settings, out: str, worker: Worker) -> None:
        self.output = rc.Receipts(out, settings)
        self.worker = worker
        self._place = out  # what is read or written just now: the output, or the folder or zip of a video

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        unit, generation = Unit.from_json(str(batch["unit"][0])), int(batch["generation"][0])
        before, self._place = self.worker.traffic, self.output.out
        rows: list[dict[str, Any]] = []
        failure = place = ""
        try:
            with _counted(unit) as deaths:
                if deaths >= _DEATHS:  # Ray itself would go on for ever
                    failure = f"its actor died {_DEATHS} times"
                else:
                    rows = self._done(unit, generation, again=deaths > 0)
        except _Loss as error:
            failure = str(error)
        except (UserError, StorageError) as error:  # such as access that is denied, or storage that kept failing
            failure, place = str(error), self._place
        except (Exception, SystemExit) as error:  # not foreseen, and no reason to lose the other units; Ray hangs on SystemExit (#62746)
            failure = f"{type(error).__name__}: {error}"
        return _report(unit, rows, failure=failure, place=place, traffic=self.worker.traffic - before)

    def _done(self, unit: Unit, generation: int, *, again: bool) -> list[dict[str, Any]]:
        """Do and commit the unit; its ledger rows. `again`: unless an actor that died got so far."""
        receipt = patiently(lambda: self.output.find(unit, generation)) if again else None
        if receipt is None:
            result = process_unit(unit, self._process)
            self._refuse_loss(unit, generation, [video.ledger for video in result.videos])
            receipt = patiently(lambda: self.output.commit(result, generation=generation))
        return receipt.videos

    def _refuse_loss(self, unit: Unit, generation: int, rows: list[dict[str, Any]]) -> None:
        """_Loss if a video that was read before no longer was: a retry replaces the whole unit, and must not lose what is there."""
        earlier = patiently(lambda: self.output.find(unit, generation - 1)) if generation else None
        for row in rc.lost(earlier, rows) if earlier else []:
            raise _Loss(
                f"{row['video_id']} was read before and now ends as {row['status']} ({row['error']}). Its family is left as it was: "
                "bring the file back, or give another --out."
            )

    def _process(self, video: Video, guide: Guide | None) -> VideoResult:
        assert video.uri is not None
        self._place = folder_of(video.uri)
        result = process_patiently(self.worker, video, guide)
        self._place = self.output.out
        return result


class _Loss(Exception):
    """A retry that would lose rows."""


@contextmanager
def _counted(unit: Unit) -> Iterator[int]:
    """How many actors have died under the unit in this run. Ray's head keeps the count, since they cannot say so themselves."""
    key = f"dfdc-ray/{ray.get_runtime_context().get_job_id()}/{unit.unit_id}".encode()
    deaths = int(internal_kv._internal_kv_get(key) or 0)
    internal_kv._internal_kv_put(key, str(deaths + 1).encode(), overwrite=True)
    try:
        yield deaths
    finally:
        internal_kv._internal_kv_del(key)


def _report(unit: Unit, rows: list[dict[str, Any]], *, failure: str, place: str, traffic: Traffic) -> dict[str, list[Any]]:
    """A batch of one row. failure: why it was not done. place: what kept it from that, where it was storage."""
    return {
        "unit_id": [unit.unit_id],
        "videos": [len(unit.videos)],
        "faces": [sum(row["faces"] for row in rows)],
        "bad": [sum(row["status"] != "ok" for row in rows)],
        "failure": [failure],
        "place": [place],
        "requests": [traffic.requests],
        "received": [traffic.bytes],
    }
