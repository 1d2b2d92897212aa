"""What preprocessing costs on this machine, beside the usual ways (ways.py).

    dfdc-ray bench preprocess --corpus VIDEOS --out out/bench

Every way takes the same frames; the ways run in turn, `--repeats` times over; each corpus is measured by itself. bench_preprocess.json is
what `dfdc-ray plan --bench` reads.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from itertools import groupby, product
from pathlib import Path
from typing import Any

from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.bench.config import BenchPreprocessConfig
from dfdc_ray.bench.machine import machine
from dfdc_ray.bench.meter import Meter
from dfdc_ray.bench.ways import Material, Outcome, material, ways
from dfdc_ray.cluster import run as cluster
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.console import Work, console, markdown_table
from dfdc_ray.corpus.index import build_index
from dfdc_ray.errors import UserError
from dfdc_ray.faces.detect import load_detector
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.plan import Unit, units
from dfdc_ray.preprocess.run import stream
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.preprocess.supervise import Worker

_START_S = 300  # for the actors
_VIDEOS = 20  # under Ray, at least
_WARM_UP = "warm-up"


@dataclass
class Row:
    """One way, over all videos of one corpus."""

    corpus: str
    way: str
    frames: int
    multiplier: int
    videos: int
    families: int  # units with an original and its fakes
    orphans: int  # units of one video
    video_bytes: int
    cpu_seconds: list[float] = field(default_factory=list)  # per video, one for each repeat
    wall_seconds: list[float] = field(default_factory=list)  # per video
    frames_sampled: int = 0
    frames_with_face: int | None = None
    faces: int = 0
    shard_bytes: int = 0  # of pictures
    seconds_by_stage: dict[str, float] = field(default_factory=dict)  # CPU, per video, of the last repeat
    peak_rss_mb: float | None = None  # actor and child together
    ray_share: list[float] = field(default_factory=list)  # CPU of all other processes under Ray, as a share of actors and children


def preprocess(config: BenchPreprocessConfig) -> None:
    """The `bench preprocess` command: a table, bench_preprocess.json and .md under `out`."""
    index, _ = build_index(config.corpus)
    found = [unit for unit in units(index) if all(v.uri for v in unit.videos)]
    if not found:
        raise UserError(f"Nothing to measure in {', '.join(config.corpus)}: no family has all its files.")
    by_corpus = {name: list(some)[: config.units] for name, some in groupby(found, key=lambda unit: unit.videos[0].corpus)}
    cases = list(product(by_corpus, config.frames, config.real_multiplier))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, Work("bench", total=len(cases) * 7 * config.repeats, unit="runs") as progress:
        for corpus, frames, multiplier in cases:
            options = PreprocessConfig(corpus=config.corpus, out=folder, frames=frames, real_multiplier=multiplier)
            given = material(by_corpus[corpus], settings_of(options), Path(folder))
            for row in _measure(corpus, given, options, config.repeats, progress):
                rows.append(row)
    _write(config, rows)


def _measure(corpus: str, given: Material, options: PreprocessConfig, repeats: int, progress: Work) -> Iterator[Row]:
    settings = settings_of(options)
    detector, stock = load_detector(options.detector), load_detector("ssd-stock")
    blank = Row(
        corpus=corpus,
        way="",
        frames=options.frames,
        multiplier=options.real_multiplier,
        videos=len(given.videos),
        families=sum(len(unit.videos) > 1 for unit in given.units),
        orphans=sum(len(unit.videos) == 1 for unit in given.units),
        video_bytes=sum(Path(path).stat().st_size for path in given.paths.values()),
    )
    local = ways(given, settings, detector=detector, stock=stock)
    names = [*local, "ray", "ray, 2 workers"]
    rows = {name: replace(blank, way=name, cpu_seconds=[], wall_seconds=[], ray_share=[], seconds_by_stage={}) for name in names}
    first = replace(given, units=given.units[:1], paths={v.video_id: given.paths[v.video_id] for v in given.units[0].videos})
    for way in ways(first, settings, detector=detector, stock=stock).values():
        way()  # loads networks for this size of frame, and files into memory
    for _ in range(repeats):
        for name, row in rows.items():
            cpu, wall = time.process_time(), time.monotonic()
            if name in local:
                outcome = local[name]()
                cpu, wall = time.process_time() - cpu, time.monotonic() - wall
            else:
                outcome, cpu, wall, share, row.peak_rss_mb = _under_ray(given.units, options, workers=2 if "2" in name else 1)
                row.ray_share.append(share)
            row.cpu_seconds.append(cpu / row.videos)
            row.wall_seconds.append(wall / row.videos)
            row.frames_sampled, row.frames_with_face, row.faces = outcome.frames, outcome.with_face, outcome.faces
            row.shard_bytes = outcome.picture_bytes
            row.seconds_by_stage = {stage: seconds / row.videos for stage, seconds in outcome.seconds_by_stage.items()}
            progress.advance(detail=f"{corpus}, {row.frames} frames x{row.multiplier}, {name}")
    yield from rows.values()


def _under_ray(todo: tuple[Unit, ...], options: PreprocessConfig, *, workers: int) -> tuple[Outcome, float, float, float, float]:
    """The outcome, CPU seconds of all processes, wall seconds, Ray's share, and peak memory in MB of actor and child, start-up excluded.

    Start-up: until each worker has done a unit. From then on both are measured, to the last unit. Few videos are done several times over,
    so that a worker that got to the second unit early makes no difference; the figures are for one time.
    """
    cluster.connect()
    settings = settings_of(options)
    worker = Worker(settings, timeout_s=options.video_timeout_s, memory_bytes=options.video_memory_mb * 2**20)
    cluster.start_actors_together(_START_S)  # so that each gets one of the first units
    times = math.ceil(_VIDEOS / sum(len(unit.videos) for unit in todo))
    warm = [replace(todo[0], unit_id=f"{_WARM_UP}-{i}") for i in range(workers)]
    again = [replace(unit, unit_id=f"{unit.unit_id}-{i}") for i in range(1, times) for unit in todo]
    work = [(unit, 0) for unit in (*warm, *todo, *again)]
    with tempfile.TemporaryDirectory() as out:
        output = rc.open_output(out, settings)
        warming = {unit.unit_id for unit in warm}
        start = math.nan
        before: dict[str, float] = {}
        with Meter() as meter:
            for row in stream(options, settings, out, work, worker=worker, actors=workers):
                if row["failure"]:
                    raise UserError(f"{row['unit_id']} was not done: {row['failure']}")
                if warming and not (warming := warming - {row["unit_id"]}):
                    before, start = meter.by_role(), time.monotonic()
            by_role = {role: seconds - before.get(role, 0.0) for role, seconds in meter.by_role().items()}
            wall = time.monotonic() - start
        wanted = {unit.unit_id for unit in todo}
        done = [receipt for unit_id, receipt in output.read().items() if unit_id in wanted]
        ledger = [row for receipt in done for row in receipt.videos]
        outcome = Outcome(
            frames=sum(row["frames_decoded"] for row in ledger),
            with_face=sum(row["frames_with_face"] for row in ledger),
            faces=sum(row["faces"] for row in ledger),
            picture_bytes=sum(storage.stat(storage.join(out, r.faces["path"])).size or 0 for r in done if r.faces),
        )
    used, ours = sum(by_role.values()), by_role["actors"] + by_role["children"]
    return outcome, used / times, wall / times, used / ours - 1, meter.peak_mb


def _write(config: BenchPreprocessConfig, rows: list[Row]) -> None:
    header = [
        "corpus",
        "frames",
        "way",
        "CPU s/video",
        "min - max",
        "report / this",
        "frames with a face",
        "Ray adds",
        "peak MB",
        "videos/min",
    ]
    cells = []
    for row in rows:
        same = [r for r in rows if (r.corpus, r.frames, r.multiplier) == (row.corpus, row.frames, row.multiplier)]
        report = statistics.median(next(r for r in same if r.way == "report").cpu_seconds)
        median = statistics.median(row.cpu_seconds)
        share = (
            "-"
            if row.frames_with_face is None
            else f"{row.frames_with_face}/{row.frames_sampled} {row.frames_with_face / row.frames_sampled:.1%}"
        )
        cells.append(
            [
                row.corpus,
                f"{row.frames}" + (f" x{row.multiplier}" if row.multiplier > 1 else ""),
                row.way,
                f"{median:.2f}",
                f"{min(row.cpu_seconds):.2f} - {max(row.cpu_seconds):.2f}",
                f"{report / median:.2f}",
                share,
                f"{statistics.median(row.ray_share):.1%}" if row.ray_share else "-",
                "-" if row.peak_rss_mb is None else f"{row.peak_rss_mb:.0f}",
                f"{60 / statistics.median(row.wall_seconds):.0f}",
            ]
        )
    about = machine()
    sizes = {row.corpus: f"{row.corpus}: {row.videos} videos, {row.families} families, {row.orphans} alone" for row in rows}
    title = f"{'; '.join(sizes.values())}; {config.repeats} runs in turn, median; {about['cores']} x {about['cpu']}"
    table = Table(*header, title=title)
    for line in cells:
        table.add_row(*line)
    console.print(table)
    stages = [["corpus", "frames", "way", "CPU s/video by stage"]]
    stages += [
        [row.corpus, f"{row.frames} x{row.multiplier}", row.way, ", ".join(f"{k} {v:.2f}" for k, v in row.seconds_by_stage.items())]
        for row in rows
        if row.seconds_by_stage
    ]
    markdown = f"{title}\n\n{markdown_table(header, cells)}\n{markdown_table(stages[0], stages[1:])}"
    result: dict[str, Any] = {"date": date.today().isoformat(), "machine": about, "rows": [asdict(row) for row in rows]}
    storage.make_dirs(config.out)
    storage.write_bytes(storage.join(config.out, "bench_preprocess.md"), markdown.encode())
    storage.write_bytes(storage.join(config.out, "bench_preprocess.json"), json.dumps(result, indent=1).encode())
