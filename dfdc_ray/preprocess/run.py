"""Preprocess a corpus on Ray Data: units go to a pool of actors, each commits its units itself; Ray only schedules.

dfdc-ray preprocess --corpus /data/dfdc --out /data/faces
ray job submit --working-dir . -- python jobs/preprocess.py --corpus s3://bucket/dfdc --out s3://bucket/faces
"""

import logging
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.cluster import run as cluster
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.console import Work, console, duration
from dfdc_ray.corpus.index import build_index, print_counts
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.plan import Unit, units
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.supervise import Worker
from dfdc_ray.preprocess.unit import process_unit

_STORAGE_TRIES = 5
_MEMORY_PER_ACTOR = 1.5 * 2**30  # bytes that Ray reserves: actor and child together, 1080p


def preprocess(config: PreprocessConfig) -> None:
    """The `preprocess` command. UserError for what can be put right, also when storage kept units from being done."""
    settings = settings_of(config)
    _check_limits(config)
    index, counts = build_index(config.corpus)
    print_counts(counts)
    out = storage.absolute(config.out)
    output = rc.open_output(out, settings)
    given = set(pc.unique(index["family_id"]).to_pylist())
    known = units(rc.remember(out, index))
    planned = [unit for unit in known if unit.family_id in given]
    work = rc.todo(planned, output.read(), config.retry)
    videos = sum(len(unit.videos) for unit in planned)
    left = sum(len(unit.videos) for unit, _ in work)
    console.print(f"Plan: {len(planned)} units, {videos} videos; {videos - left} done before, {left} to do. Output: {out}", highlight=False)
    start = time.monotonic()
    failures: dict[str, str] = {}
    try:
        failures = _run(config, settings, out, work) if work else {}
    finally:  # what is done can be used, however this run ends
        ledger = rc.publish(output, known, settings, versions=rc.versions())
    _summary(ledger, seconds=time.monotonic() - start)
    undone = {unit.unit_id for unit, _ in rc.todo([unit for unit, _ in work], output.read(), ())}
    for unit_id in sorted(undone - failures.keys()):
        failures[unit_id] = "its worker wrote no receipt that is seen here: --out must be on storage that all nodes share"
    if failures:
        raise UserError(_not_done(failures))


def _check_limits(config: PreprocessConfig) -> None:
    smallest = {"video_timeout_s": 1, "video_memory_mb": 512}
    for name, least in smallest.items():
        if getattr(config, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least {least}.")
    if config.workers is not None and config.workers < 1:
        raise UserError(f"--workers {config.workers}: must be at least 1.")


def _run(config: PreprocessConfig, settings: Settings, out: str, work: list[tuple[Unit, int]]) -> dict[str, str]:
    """Do the units; return the reason by unit_id for those that storage or the machine kept from being done."""
    cluster.connect()
    actors = _actors(config, len(work))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts videos, theirs blocks
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that its bars are off
    slowest = max(len(unit.videos) for unit, _ in work) * 2 * config.video_timeout_s  # every video stalls, twice
    context.execution_no_progress_timeout_s = int(1800 + slowest)
    custom: dict[str, Any] = {"resources": {config.resource: 1}} if config.resource else {}
    items = [{"unit": unit.to_json(), "generation": generation} for unit, generation in work]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ProcessUnit,
        fn_constructor_kwargs={"settings": settings, "out": out, "timeout_s": config.video_timeout_s, "memory_mb": config.video_memory_mb},
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        memory=_MEMORY_PER_ACTOR,
        **custom,
    )
    total = sum(len(unit.videos) for unit, _ in work)
    failures: dict[str, str] = {}
    faces = bad = 0
    with Work("preprocess", total=total, unit="videos") as progress:
        for row in results.iter_rows():
            faces, bad = faces + row["faces"], bad + row["bad"]
            if row["failure"]:
                failures[row["unit_id"]] = row["failure"]
            progress.advance(row["videos"], detail=f"{faces} faces, {bad} videos without, {len(failures)} units not done")
    return failures


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

    def __init__(self, *, settings: Settings, out: str, timeout_s: float, memory_mb: int) -> None:
        self.output = rc.Receipts(out, settings)
        self.worker = Worker(settings, timeout_s=timeout_s, memory_bytes=memory_mb * 2**20)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        unit, generation = Unit.from_json(str(batch["unit"][0])), int(batch["generation"][0])
        for attempt in range(_STORAGE_TRIES):
            try:
                receipt = self.output.commit(process_unit(unit, self.worker.process), generation=generation)
                break
            except UserError as error:  # such as access that is denied: trying again does not help
                return _report(unit, [], failure=str(error))
            except StorageError as error:
                if attempt == _STORAGE_TRIES - 1:
                    return _report(unit, [], failure=str(error))
                time.sleep(2.0**attempt)
        return _report(unit, receipt.videos, failure="")


def _report(unit: Unit, rows: list[dict[str, Any]], *, failure: str) -> dict[str, list[Any]]:
    return {
        "unit_id": [unit.unit_id],
        "videos": [len(unit.videos)],
        "faces": [sum(row["faces"] for row in rows)],
        "bad": [sum(row["status"] != "ok" for row in rows)],
        "failure": [failure],
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
        console.print(
            f"  {row['status']}: {row['video_id']}: {row['stage'] or ''} {row['error']}", highlight=False, markup=False, soft_wrap=True
        )
    if len(bad) > 20:
        console.print(f"  and {len(bad) - 20} more in ledger.parquet")
    console.print(f"Took {duration(seconds)}.")


def _not_done(failures: dict[str, str]) -> str:
    reasons = "\n".join(f"  {unit_id}: {reason}" for unit_id, reason in list(failures.items())[:10])
    what = f"{len(failures)} units were not done because storage or the machine failed"
    return f"{what}:\n{reasons}\nRun the same command again: it does only these."
