"""Pack face shards on Ray: each task reads the source files of one shard, writes it and commits it; Ray only schedules.

dfdc-ray pack --faces /data/faces --out /data/packed
ray job submit --working-dir . -- python jobs/pack.py --faces s3://bucket/faces --out s3://bucket/packed
"""

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import ray
from rich.table import Table

from dfdc_ray import __version__, storage
from dfdc_ray.cluster import run as cluster
from dfdc_ray.config import PackConfig
from dfdc_ray.console import Work, console, duration
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.shards import packed
from dfdc_ray.shards.manifest import read_manifest
from dfdc_ray.shards.pack import Shard, plan

MAX_SHARD_MB = 1000
_STORAGE_TRIES = 5
_MEMORY = 300e6, 3.0  # bytes that Ray reserves for a task: so many, and so many times its shard's images


def pack(config: PackConfig) -> None:
    """The `pack` command. UserError for what can be put right, also when storage kept shards from being made."""
    _check(config)
    faces, out = storage.absolute(config.faces), storage.absolute(config.out)
    if faces == out:
        raise UserError(f"--out {config.out} is where --faces are: give another folder.")
    source = read_manifest(faces)
    if source.kind != "plain":
        raise UserError(f"{faces} is packed already: give the output of `dfdc-ray preprocess`.")
    settings = packed.Settings(
        faces_data_hash=source.data_hash, seed=config.seed, shard_mb=config.shard_mb, row_group_mb=config.row_group_mb
    )
    packed.open_output(out, settings)
    copied = packed.companions(source)
    shards = plan(source, seed=config.seed, shard_bytes=config.shard_mb * 1e6)
    receipts = packed.done(out, shards)
    work = [shard for shard in shards if shard.number not in receipts]
    size = sum(shard.bytes for shard in shards)
    console.print(
        f"Plan: {len(source.files):,} files of {source.rows:,} faces ({size / 1e9:.2f} GB) into {len(shards)} shards; "
        f"{len(receipts)} done before, {len(work)} to do. Output: {out}",
        highlight=False,
        soft_wrap=True,
    )
    start = time.monotonic()
    if work:
        failures = _run(config, out, settings, work)
        receipts = packed.done(out, shards)
        for shard in work:
            if shard.number not in receipts:
                failures.setdefault(shard.number, "its task wrote nothing that is seen here: --out must be on storage that all nodes share")
        if failures:
            raise UserError(_not_done(failures))
    manifest = packed.publish(out, source, receipts, settings, copied=copied, versions=_versions())
    _summary(manifest, seconds=time.monotonic() - start)


def _check(config: PackConfig) -> None:
    if not 0 < config.shard_mb <= MAX_SHARD_MB:
        raise UserError(f"--shard-mb {config.shard_mb:g}: must be above 0 and at most {MAX_SHARD_MB}.")
    if not 0 < config.row_group_mb <= config.shard_mb:
        raise UserError(f"--row-group-mb {config.row_group_mb:g}: must be above 0 and at most --shard-mb.")
    if config.seed < 0:
        raise UserError(f"--seed {config.seed}: must not be negative.")
    if config.workers is not None and config.workers < 1:
        raise UserError(f"--workers {config.workers}: must be at least 1.")


def _run(config: PackConfig, out: str, settings: packed.Settings, work: Sequence[Shard]) -> dict[int, str]:
    """Make the shards; return the reason by number for those that could not be made."""
    cluster.connect()
    if config.workers:
        cluster.require(cpus=config.workers)
    at_once = config.workers or max(1, int(cluster.capacity("CPU")) - 1)
    task = ray.remote(num_cpus=1, max_retries=3, memory=_memory(work))(_make)
    waiting = list(reversed(work))
    running: dict[ray.ObjectRef, Shard] = {}
    failures: dict[int, str] = {}
    made = size = 0
    with Work("pack", total=round(sum(shard.bytes for shard in work) / 1e6), unit="MB") as progress:
        while waiting or running:
            while waiting and len(running) < at_once:
                shard = waiting.pop()
                running[task.remote(out, shard, settings)] = shard
            (finished,), _ = ray.wait(list(running), num_returns=1)
            shard = running.pop(finished)
            try:
                failure = ray.get(finished)
            except ray.exceptions.RayError as error:  # its process died, again and again
                failure = str(error).strip().splitlines()[-1]
            made += not failure
            if failure:
                failures[shard.number] = failure
            size += shard.bytes
            progress.advance(round(size / 1e6) - progress.done, detail=f"{made} of {len(work)} shards, {len(failures)} not done")
    return failures


def _memory(work: Sequence[Shard]) -> float:
    """Bytes to reserve for each task. UserError if none could ever start; on a cluster, which may grow, a warning."""
    fixed, times = _MEMORY
    need = fixed + times * max(shard.bytes for shard in work)
    have = max(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"])
    if need > have:
        short = f"Making a shard needs about {need / 1e9:.1f} GB of memory, and Ray has {have / 1e9:.1f} GB on a node"
        if not cluster.joined():
            raise UserError(f"{short}. Give a smaller --shard-mb.")
        console.print(f"[yellow]{short}. It waits for a larger node, for ever if none comes: give a smaller --shard-mb.[/]", soft_wrap=True)
    return need


def _make(out: str, shard: Shard, settings: packed.Settings) -> str:
    """One Ray task; empty, or why the shard was not made."""
    for attempt in range(_STORAGE_TRIES):
        try:
            packed.commit(out, shard, settings)
            break
        except UserError as error:  # such as access that is denied: trying again does not help
            return str(error)
        except StorageError as error:
            if attempt == _STORAGE_TRIES - 1:
                return str(error)
            time.sleep(2.0**attempt)
    return ""


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "dfdc-ray": __version__} | {name: version(name) for name in ("numpy", "pyarrow", "ray")}


def _summary(manifest: dict[str, Any], *, seconds: float) -> None:
    files, counts = manifest["files"], manifest["counts"]
    table = Table(title="Packed")
    for column in ("label", "videos", "tracks", "faces"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for row in counts["label"]:
        table.add_row(row["label"] or "no label", *(f"{row[name]:,}" for name in ("videos", "tracks", "rows")))
    console.print(table)
    sizes = [file["bytes"] / 1e6 for file in files]
    console.print(
        f"{len(files):,} shards of {min(sizes):.1f} to {max(sizes):.1f} MB, {sum(file['row_groups'] for file in files):,} row groups, "
        f"{len(counts['group']):,} groups; counts by label, part and group are in manifest.json. Took {duration(seconds)}.",
        highlight=False,
        soft_wrap=True,
    )


def _not_done(failures: dict[int, str]) -> str:
    reasons = "\n".join(f"  shard {number}: {reason}" for number, reason in sorted(failures.items())[:10])
    return f"{len(failures)} shards were not made:\n{reasons}\nWhen that is put right, run the same command again: it does only these."
