"""Preprocess a corpus on Ray Data: units go to a pool of actors, each commits its units itself; Ray only schedules.

dfdc-ray preprocess --corpus /data/dfdc --out /data/faces
ray job submit --working-dir . -- python jobs/preprocess.py --corpus s3://bucket/dfdc --out s3://bucket/faces

Storage that fails is tried again with pauses, an actor that dies is started again; what is still not done then is named, has no receipt,
and is done by the next run. A receipt is the only thing that counts: not that an actor reported, nor that it lives.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.experimental import internal_kv
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.cluster import run as cluster
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.console import Work, console, duration, printable
from dfdc_ray.corpus.index import build_index, print_counts
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.preprocess import coverage, publish
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.plan import Unit, Video, units
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.supervise import Worker
from dfdc_ray.preprocess.unit import Guide, VideoResult, process_unit
from dfdc_ray.storage import Traffic

T = TypeVar("T")
_PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between tries while storage fails
_DEATHS = 10  # of actors under one unit, before it is left to the next run
_MEMORY_PER_ACTOR = 1.5 * 2**30  # bytes that Ray reserves: actor and child together, 1080p


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
    output = _patiently(lambda: rc.open_output(out, settings))
    given = set(pc.unique(index["family_id"]).to_pylist())
    known = units(_patiently(lambda: publish.remember(out, index)))
    planned = [unit for unit in known if unit.family_id in given]
    work = rc.todo(planned, _patiently(output.read), config.retry)
    videos = sum(len(unit.videos) for unit in planned)
    left = sum(len(unit.videos) for unit, _ in work)
    console.print(f"Plan: {len(planned)} units, {videos} videos; {videos - left} done before, {left} to do. Output: {out}", highlight=False)
    if not work:
        console.print("Nothing to do: all of it is done already.")
    start = time.monotonic()
    failures: dict[str, str] = {}
    try:
        failures = _run(config, settings, out, work, sizes=_sizes(index, work)) if work else {}
    except (KeyboardInterrupt, SystemExit):  # the latter is what connect() makes of SIGTERM
        console.print("Stopped. Publishing what is done; run the same command again to go on.")
        raise
    finally:  # what is done can be used, however this run ends
        ledger = _patiently(lambda: publish.publish(output, units(publish.remember(out, index)), settings, versions=rc.versions()))
    _summary(ledger, seconds=time.monotonic() - start)
    coverage.write(out)
    done = _patiently(output.read) if work else {}
    undone = {unit.unit_id for unit, generation in work if unit.unit_id not in done or done[unit.unit_id].generation < generation}
    unseen = "its worker wrote no receipt that is seen here: --out must be on storage that all nodes share"
    wrong = [_not_done({unit_id: failures.get(unit_id, unseen) for unit_id in sorted(undone)})] if undone else []
    wrong += _too_many_errors(ledger, {video.video_id for unit in planned for video in unit.videos}, config.max_error_share)
    if wrong:
        raise UserError("\n".join(wrong))


def _check_limits(config: PreprocessConfig) -> None:
    smallest = {"video_timeout_s": 1, "video_memory_mb": 512}
    for name, least in smallest.items():
        if getattr(config, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least {least}.")
    if not 0 <= config.max_error_share <= 1:
        raise UserError(f"--max-error-share {config.max_error_share}: must be between 0 (none may fail) and 1 (all may).")
    if config.workers is not None and config.workers < 1:
        raise UserError(f"--workers {config.workers}: must be at least 1.")


def _run(config: PreprocessConfig, settings: Settings, out: str, work: list[tuple[Unit, int]], *, sizes: dict[str, int]) -> dict[str, str]:
    """Do the units; return the reason by unit_id for those that storage or the machine kept from being done. `sizes`: bytes by unit_id."""
    cluster.connect()
    actors = _actors(config, len(work))
    total = sum(len(unit.videos) for unit, _ in work)
    failures: dict[str, str] = {}
    open_units = {unit.unit_id for unit, _ in work}
    faces = bad = in_a_row = 0
    limit = max(8, 2 * actors)
    traffic, videos_read, bytes_of_videos = Traffic(), 0, 0
    worker = Worker(settings, timeout_s=config.video_timeout_s, memory_bytes=config.video_memory_mb * 2**20)
    with Work("preprocess", total=total, unit="videos") as progress:
        for row in stream(config, settings, out, work, worker=worker, actors=actors):
            faces, bad = faces + row["faces"], bad + row["bad"]
            open_units.discard(row["unit_id"])
            in_a_row = in_a_row + 1 if row["failure"] else 0
            if row["failure"]:
                failures[row["unit_id"]] = row["failure"]
            progress.advance(row["videos"], detail=f"{faces} faces, {bad} videos without, {len(failures)} units not done")
            if row["requests"]:
                traffic += Traffic(row["requests"], row["received"])
                videos_read, bytes_of_videos = videos_read + row["videos"], bytes_of_videos + sizes[row["unit_id"]]
            if in_a_row >= limit:
                break  # a full disk or a lost bucket: each further unit would wait for nothing
    if traffic.requests:
        read = f"{traffic.requests} requests, {traffic.bytes / 1e6:.1f} MB read for {videos_read} videos of {bytes_of_videos / 1e6:.1f} MB"
        console.print(f"S3: {read}, {traffic.requests / videos_read:.2f} requests a video", highlight=False, soft_wrap=True)
    stopped = in_a_row >= limit
    reason = f"left out, since {in_a_row} units in a row had failed" if stopped else "Ray gave it up: its message is above"
    return failures | dict.fromkeys(sorted(open_units), reason)


def _sizes(index: pa.Table, work: list[tuple[Unit, int]]) -> dict[str, int]:
    """Bytes of each unit's videos, as far as they are in the index."""
    by_video = dict(zip(index["video_id"].to_pylist(), index["size_bytes"].to_pylist(), strict=True))
    return {unit.unit_id: sum(by_video.get(video.video_id) or 0 for video in unit.videos) for unit, _ in work}


def stream(
    config: PreprocessConfig, settings: Settings, out: str, work: list[tuple[Unit, int]], *, worker: Worker, actors: int
) -> Iterator[dict[str, Any]]:
    """What the actors report of each unit (see ProcessUnit), as they get done. `work`: units with the generation to write."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts videos, theirs blocks
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that its bars are off
    slowest = max(len(unit.videos) for unit, _ in work) * 2 * config.video_timeout_s  # every video stalls, twice
    context.execution_no_progress_timeout_s = int(1800 + slowest)
    context.max_errored_blocks = -1  # a unit that Ray gives up is missed below, and the others go on
    custom: dict[str, Any] = {"resources": {config.resource: 1}} if config.resource else {}
    items = [{"unit": unit.to_json(), "generation": generation} for unit, generation in work]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ProcessUnit,
        fn_constructor_kwargs={"settings": settings, "out": out, "worker": worker},
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        memory=_MEMORY_PER_ACTOR,
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

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        unit, generation = Unit.from_json(str(batch["unit"][0])), int(batch["generation"][0])
        try:
            with _counted(unit) as deaths:
                if deaths >= _DEATHS:  # Ray itself would go on for ever
                    return _report(unit, [], failure=f"its actor died {_DEATHS} times")
                return self._done(unit, generation, again=deaths > 0)
        except (UserError, StorageError) as error:  # such as access that is denied, or storage that kept failing
            return _report(unit, [], failure=str(error))
        except (Exception, SystemExit) as error:  # not foreseen, and no reason to lose the other units; Ray hangs on SystemExit (#62746)
            return _report(unit, [], failure=f"{type(error).__name__}: {error}")

    def _done(self, unit: Unit, generation: int, *, again: bool) -> dict[str, list[Any]]:
        """Do and commit the unit; `again`: unless an actor that died got so far."""
        traffic = Traffic()
        receipt = _patiently(lambda: self.output.find(unit, generation)) if again else None
        if receipt is None:
            result = process_unit(unit, self._process)
            traffic = sum((video.traffic for video in result.videos), traffic)
            self._refuse_loss(unit, generation, [video.ledger for video in result.videos])
            receipt = _patiently(lambda: self.output.commit(result, generation=generation))
        return _report(unit, receipt.videos, failure="", traffic=traffic)

    def _refuse_loss(self, unit: Unit, generation: int, rows: list[dict[str, Any]]) -> None:
        """UserError if a video that was read before no longer was: a retry replaces the whole unit, and must not lose what is there."""
        earlier = _patiently(lambda: self.output.find(unit, generation - 1)) if generation else None
        for row in rc.lost(earlier, rows) if earlier else []:
            raise UserError(
                f"{row['video_id']} was read before and now ends as {row['status']} ({row['error']}). Its family is left as it was: "
                "bring the file back, or give another --out."
            )

    def _process(self, video: Video, guide: Guide | None) -> VideoResult:
        return _patiently(lambda: self.worker.process(video, guide))


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


def _patiently(call: Callable[[], T]) -> T:
    """The call's result; while storage fails, called again after pauses."""
    for pause in _PAUSES_S:
        try:
            return call()
        except StorageError:
            time.sleep(pause)
    return call()


def _report(unit: Unit, rows: list[dict[str, Any]], *, failure: str, traffic: Traffic | None = None) -> dict[str, list[Any]]:
    traffic = traffic or Traffic()
    return {
        "unit_id": [unit.unit_id],
        "videos": [len(unit.videos)],
        "faces": [sum(row["faces"] for row in rows)],
        "bad": [sum(row["status"] != "ok" for row in rows)],
        "failure": [failure],
        "requests": [traffic.requests],
        "received": [traffic.bytes],
    }


def _summary(ledger: pa.Table, *, seconds: float) -> None:
    """The whole output by outcome and label, and why videos went wrong."""
    rows = ledger.to_pylist()
    table = Table(title=f"Ledger: {len(rows)} videos")
    for column in ("status", "real", "fake", "no label", "frames with a face", "faces", "boxes from original"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for status in ("ok", "no_face", "error", "missing", "poison"):
        some = [row for row in rows if row["status"] == status]
        by_label = [sum(row["label"] == label for row in some) for label in ("REAL", "FAKE", None)]
        decoded, found = sum(row["frames_decoded"] for row in some), sum(row["frames_with_face"] for row in some)
        share = f"{found} of {decoded} ({found / decoded:.1%})" if decoded else "-"
        reused = sum(row["box_source"] == "original" for row in some)
        table.add_row(status, *map(str, by_label), share, str(sum(row["faces"] for row in some)), str(reused))
    console.print(table)
    bad = [row for row in rows if row["status"] not in ("ok", "no_face")]
    for row in bad[:20]:
        said = printable(f"{row['status']}: {row['video_id']}: {row['stage'] or ''} {row['error']}")
        console.print(f"  {said}", highlight=False, markup=False, soft_wrap=True)
    if len(bad) > 20:
        console.print(f"  and {len(bad) - 20} more in ledger.parquet")
    console.print(f"Took {duration(seconds)}.")


def _not_done(failures: dict[str, str]) -> str:
    reasons = "\n".join(f"  {unit_id}: {reason}" for unit_id, reason in list(failures.items())[:10])
    what = f"{len(failures)} units were not done because storage or the machine failed"
    return f"{what}:\n{reasons}\nRun the same command again: it does only these."


def _too_many_errors(ledger: pa.Table, planned: set[str], most: float) -> list[str]:
    """What to say if a larger share of this run's videos than `most` ended as error or poison; those that are missing are left out."""
    rows = [row for row in ledger.to_pylist() if row["video_id"] in planned and row["status"] != "missing"]
    bad = [row for row in rows if row["status"] in ("error", "poison")]
    if len(bad) <= most * len(rows):
        return []
    causes = Counter(f"{row['status']}: {row['stage']} {_without_numbers(row['error'])}" for row in bad)
    common = "\n".join(f"  {count} x {cause}" for cause, count in causes.most_common(5))
    return [
        f"{len(bad)} of {len(rows)} videos ({len(bad) / len(rows):.2%}) ended as error or poison, more than --max-error-share {most:g} "
        f"allows. Most often:\n{common}\nThe rest is done and published; ledger.parquet names each. --retry error poison does them again; "
        "a larger --max-error-share accepts them."
    ]


def _without_numbers(text: str) -> str:
    """So that the same trouble in two videos reads the same."""
    return re.sub(r"\d+(\.\d+)?", "#", text)
