"""What a large corpus costs before any video is opened: the plan, Ray's driver, the storage, and the run that finds nothing left to do.

    dfdc-ray index --corpus s3://bucket/dfdc --out dfdc.parquet
    dfdc-ray bench scale --index dfdc.parquet --out s3://bucket/scale

It is `dfdc-ray preprocess` from the index on: the same plan, Ray graph, actors, receipts, ledger and manifest. Only what is done with a
video is left out (StandIn): nothing is opened, decoded, detected or cropped, no child process runs, and a video gives two rows with tiny
pictures. So an actor's CPU time and the bytes under faces/ and boxes/ say nothing about real videos; receipts, stats, ledger and manifest
are of the real size. The output is left where it is, finished.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.bench.config import BenchScaleConfig
from dfdc_ray.bench.machine import machine
from dfdc_ray.bench.meter import Meter, peak_kb
from dfdc_ray.cluster import run as cluster
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.console import Work, console, markdown_table
from dfdc_ray.corpus.index import INDEX
from dfdc_ray.errors import UserError
from dfdc_ray.preprocess import publish
from dfdc_ray.preprocess import receipts as rc
from dfdc_ray.preprocess.estimate import measured, nearest, workloads
from dfdc_ray.preprocess.plan import Video, units
from dfdc_ray.preprocess.run import preprocess_index, stream
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.supervise import Worker
from dfdc_ray.preprocess.unit import Guide, VideoResult, ledger_row
from dfdc_ray.video.sampling import Sample

_FACTS = ["video", "label", "original", "part"]
_CORES = (100, 1000)  # for which the driver's share is printed


class StandIn(Worker):
    """In place of a real Worker: a sound video's ledger row and two rows with tiny pictures, the same for any two runs."""

    wait_s = 0.0  # for each video

    def process(self, video: Video, guide: Guide | None) -> VideoResult:
        """Every video is found sound, with a face in each frame."""
        time.sleep(self.wait_s)
        s = self.settings
        own = guide is None  # else it takes its original's boxes
        frames = s.frames * (s.real_multiplier if video.label == "REAL" else 1)
        counts: dict[str, Any] = {
            "frames_wanted": frames,
            "frames_decoded": frames,
            "core_decoded": s.frames,
            "frames_with_face": frames,
            "faces": frames,
        }
        about: dict[str, Any] = {
            "brightness": 103.4,
            "face_brightness": 98.7,
            "crop_side": 213.0,
            "box_source": "self" if own else "original",
        }
        about |= {} if own else {"alignment": "scene 0.998, motion 0.973"}
        row = {
            name: getattr(video, name) for name in ("corpus", "video_id", "family_id", "group_id", "part", "label", "method", "original")
        }
        row |= {"track_id": 0, "core": True, "box": [810.0, 290.0, 160.0, 210.0], "crop": [757, 220, 266, 350], "det_score": 0.87}
        row |= {"detector": s.detector, "box_source": about["box_source"], "frame_width": 1920, "frame_height": 1080}
        row |= {"landmarks": [0.0] * 10, "image": {"bytes": bytes(300), "path": None}}
        rows = [row | {"frame": frame, "pts": 512 * frame, "time_s": frame / 30} for frame in (15, 285)]
        seconds = {"open": 0.012, "probe": 0.034, "decode": 1.234, "detect": 2.345, "align": 0.012, "crop": 0.123}
        mine = Guide(1920, 1080, 300, (Sample(15, True), Sample(285, True)), {}, {}) if own else None
        return VideoResult(ledger_row(video, status="ok", **counts, **about), rows, mine, seconds)


@dataclass
class Step:
    """One step of the command: time and S3 requests of this process alone, and the memory that it holds at the end."""

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    requests: int = 0
    rss_mb: float = 0.0


@dataclass
class Result:
    """What was measured."""

    units: int
    videos: int
    workers: int
    steps: list[Step] = field(default_factory=list)
    cpu_by_role: dict[str, float] = field(default_factory=dict)  # CPU seconds of the step "units"
    driver_peak_mb: float = 0.0
    objects: dict[str, tuple[int, int]] = field(default_factory=dict)  # by folder or file: how many, bytes
    unit_cpu_seconds: float | None = None  # of a real unit

    @property
    def driver_ms(self) -> float:
        """CPU time of the driver for each further unit."""
        return 1000 * self.cpu_by_role["driver"] / (self.units - 1)

    @property
    def units_per_second(self) -> float:
        """How many units one core of the driver can hand out and take back."""
        return 1000 / self.driver_ms


def scale(config: BenchScaleConfig) -> None:
    """The `bench scale` command: tables, bench_scale.json and .md under `out`. UserError for an output that is not new, or an odd index."""
    options = PreprocessConfig(corpus=(), out=storage.join(storage.absolute(config.out), "output"))
    settings = settings_of(options)
    index = first_families(read_index(config.index), config.units)
    if storage.exists(options.out):
        raise UserError(f"{options.out} is there already, and a finished output leaves nothing to measure: give another --out.")
    result = Result(units=pc.count_distinct(index["family_id"]).as_py(), videos=index.num_rows, workers=config.workers)
    if result.units < 2:
        raise UserError(f"{config.index} has {result.units} families: too few to measure.")
    _first_run(config, options, settings, index, result)
    with _step(result, "second run"):
        preprocess_index(options, settings, index)
    result.driver_peak_mb = peak_kb(os.getpid()) / 1024
    result.objects = _objects(options.out)
    result.unit_cpu_seconds = config.unit_cpu_seconds or (unit_cpu_seconds(config.bench, index) if config.bench else None)
    _write(config, result)


def _first_run(config: BenchScaleConfig, options: PreprocessConfig, settings: Settings, index: pa.Table, result: Result) -> None:
    """As `preprocess` does it, in steps that can be measured."""
    out = options.out
    with _step(result, "plan"):
        output = rc.open_output(out, settings)
        known = units(publish.remember(out, index))
        work = rc.todo(known, output.read(), ())
    with _step(result, "start of Ray"):
        cluster.connect()
        cluster.require(cpus=config.workers + 1)
    worker = StandIn(settings, timeout_s=options.video_timeout_s, memory_bytes=0)
    worker.wait_s = config.video_s
    with Meter() as meter, Work("bench scale", total=len(work), unit="units") as progress:
        rows = stream(options, settings, out, work, worker=worker, actors=config.workers)
        with _step(result, "first unit"):
            _check(next(rows), progress)
        before = meter.by_role()
        with _step(result, "other units"):
            for row in rows:
                _check(row, progress)
        result.cpu_by_role = {role: seconds - before.get(role, 0.0) for role, seconds in meter.by_role().items()}
    with _step(result, "publication"):
        publish.publish(output, units(publish.remember(out, index)), settings, versions=rc.versions())


def _check(row: dict[str, Any], progress: Work) -> None:
    if row["failure"]:
        raise UserError(f"{row['unit_id']} was not done: {row['failure']}")
    progress.advance()


@contextmanager
def _step(result: Result, name: str) -> Iterator[None]:
    wall, cpu, requests = time.monotonic(), time.process_time(), storage.traffic().requests
    yield
    rss = psutil.Process().memory_info().rss / 2**20
    result.steps.append(Step(name, time.monotonic() - wall, time.process_time() - cpu, storage.traffic().requests - requests, rss))


def read_index(uri: str) -> pa.Table:
    """A table of schema INDEX from what `dfdc-ray index` wrote, or from a bare list of DFDC's videos, which then lie in zips nowhere."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
        return _from_list(table.select(_FACTS)) if set(_FACTS) <= set(table.column_names) else table.select(INDEX.names).cast(INDEX)
    except (KeyError, ValueError) as error:  # pyarrow's own are ValueErrors
        raise UserError(
            f"{uri} is neither an index, as `dfdc-ray index` writes it, nor a table with {', '.join(_FACTS)}: {error}"
        ) from error


def _from_list(table: pa.Table) -> pa.Table:
    """video: file name; label: REAL, FAKE; original: file name or null; part: -1 where it is unknown. A family is in its highest part."""
    rows = table.to_pylist()
    parts: dict[str, int] = {}
    for row in rows:
        family = row["original"] or row["video"]
        parts[family] = max(parts.get(family, -1), row["part"])
    return pa.Table.from_pylist([_row(row, parts) for row in rows], schema=INDEX)


def _row(row: dict[str, Any], parts: dict[str, int]) -> dict[str, Any]:
    family = row["original"] or row["video"]
    part = parts[family]
    return {
        "corpus": "dfdc",
        "video_id": f"dfdc/{row['video']}",
        "uri": f"s3://bucket/dfdc/dfdc_train_part_{part:02d}.zip!/dfdc_train_part_{part}/{row['video']}",
        "label": row["label"],
        "original": row["original"] and f"dfdc/{row['original']}",
        "family_id": f"dfdc/{family}",
        "group_id": f"dfdc/family:{family}" if part < 0 else f"dfdc/part:{part}",
        "part": None if part < 0 else part,
    }


def first_families(index: pa.Table, most: int | None) -> pa.Table:
    """Of the first so many families by name, all videos."""
    if most is None:
        return index
    families = pc.unique(index["family_id"])
    return index.filter(pc.is_in(index["family_id"], value_set=families.take(pc.sort_indices(families)[:most])))


def unit_cpu_seconds(bench: str, index: pa.Table) -> float:
    """CPU seconds of a unit of this index on the average, from what `bench preprocess` measured with preprocess's default options."""
    options = PreprocessConfig(corpus=(), out="")
    how = {"frames": options.frames, "multiplier": options.real_multiplier}
    try:
        rows = json.loads(storage.read_bytes(bench))["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{bench} is not a result of `dfdc-ray bench preprocess` ({error!r}).") from error
    known, work = measured(rows, where=bench, **how), workloads(index)
    return sum(nearest(known, one).seconds(one.real, one.reused, one.alone, **how) for one in work) / sum(one.units for one in work)


def _objects(out: str) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for entry in storage.list_dir(out, recursive=True):
        if not entry.is_dir:
            folder, slash, _ = entry.name.partition("/")
            count, size = found.get(folder + slash, (0, 0))
            found[folder + slash] = count + 1, size + (entry.size or 0)
    return found


def _write(config: BenchScaleConfig, result: Result) -> None:
    about = machine()
    s3 = storage.is_s3(storage.absolute(config.out))
    where = f"{'S3' if s3 else 'disk'}; {about['cores']} x {about['cpu']}"
    title = f"{result.units:,} units, {result.videos:,} videos, {result.workers} workers, {where}"
    left_out = "Left out: opening, decoding, detecting, cropping, the child process, real pictures."
    if config.video_s:
        left_out += f" In their place {config.video_s:g} s of waiting for each video."
    tables = [_steps(result), _costs(result), _stored(result)]
    means = meaning(result)
    console.print(f"{title}\n{left_out}", highlight=False, soft_wrap=True)
    for header, *lines in tables:
        table = Table(*header)
        for cells in lines:
            table.add_row(*cells)
        console.print(table)
    console.print("\n".join(means), highlight=False, soft_wrap=True)
    markdown = "\n".join(
        [title, "", left_out, "", *(markdown_table(header, lines) for header, *lines in tables), *(f"- {line}" for line in means), ""]
    )
    content: dict[str, Any] = {"date": date.today().isoformat(), "machine": about, "s3": s3, "left_out": left_out} | asdict(result)
    content |= {"driver_ms_per_unit": result.driver_ms, "units_per_second": result.units_per_second}
    storage.write_bytes(storage.join(config.out, "bench_scale.md"), markdown.encode())
    storage.write_bytes(storage.join(config.out, "bench_scale.json"), json.dumps(content, indent=1).encode())


def _steps(result: Result) -> list[list[str]]:
    lines = [[s.name, f"{s.seconds:.1f}", f"{s.cpu_seconds:.1f}", f"{s.requests:,}", f"{s.rss_mb:.0f}"] for s in result.steps]
    return [["step", "seconds", "CPU s of the driver", "its S3 requests", "MB it holds after"], *lines]


def _costs(result: Result) -> list[list[str]]:
    """CPU time of the step "other units"."""
    units = result.units - 1
    lines = [[role, f"{seconds:.1f}", f"{1000 * seconds / units:.2f}"] for role, seconds in sorted(result.cpu_by_role.items())]
    return [["process", "CPU s", "CPU ms a unit"], *lines]


def _stored(result: Result) -> list[list[str]]:
    lines = [[name, f"{count:,}", f"{size / 1e6:,.2f}", f"{size / count / 1e3:,.2f}"] for name, (count, size) in result.objects.items()]
    return [["written", "objects", "MB", "kB each"], *lines]


def meaning(result: Result) -> list[str]:
    """What the figures say of a cluster."""
    rate = result.units_per_second
    lines = [
        f"Peak memory of the driver: {result.driver_peak_mb:.0f} MB.",
        f"The driver takes {result.driver_ms:.2f} ms of CPU time for each unit: one core of it can keep up with {rate:.0f} units/s.",
    ]
    if result.unit_cpu_seconds is None:
        return [*lines, "With the CPU seconds of a real unit (--bench or --unit-cpu-seconds) that is a number of cores."]
    for cores in _CORES:
        need = cores / result.unit_cpu_seconds
        lines.append(
            f"{cores:,} cores: {need:.1f} units/s at {result.unit_cpu_seconds:g} CPU s a unit, {need / rate:.0%} of one core of the driver."
        )
    return [*lines, f"The driver is full at {rate * result.unit_cpu_seconds:,.0f} cores."]
