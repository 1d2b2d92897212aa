"""What preprocessing a corpus will take, before any of it runs: counts, bytes, and from measurements the time, storage, requests and cost.

    dfdc-ray plan --corpus s3://bucket/dfdc --vcpus 320 --bench out/bench/bench_preprocess.json --price USD

The model is a line: seconds = per video + per frame whose faces are looked for + per frame that is cropped, each measured by `dfdc-ray
bench preprocess` on videos like these. Everything that is assumed is printed beside the result.
"""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from dfdc_ray import storage
from dfdc_ray.config import PlanConfig
from dfdc_ray.console import console, duration
from dfdc_ray.corpus.index import INDEX, build_index, print_counts
from dfdc_ray.corpus.zips import MAX_WHOLE, outermost
from dfdc_ray.errors import UserError

_UNLIKE = 2.0  # a ratio of bytes per video above which a measurement is called unlike the corpus
_PAGE = 1000  # names that S3 lists in one request
_HOUR = 3600.0
_HOW = "`dfdc-ray bench preprocess --corpus SOME_OF_THE_VIDEOS --out out/bench` on one such machine measures it; then give --bench FILE."


@dataclass(frozen=True)
class Workload:
    """One corpus, counted by what preprocess does with its videos."""

    corpus: str
    units: int
    real: int  # detected by themselves, with the multiplier
    reused: int  # take the boxes of their original
    alone: int  # detected by themselves: fakes without their original, and videos without a label
    missing: int  # no file
    video_bytes: int
    largest_unit: tuple[int, int, int]  # real, reused, alone videos of the unit with the most videos
    gets: int  # requests to read the videos, if they are on S3, besides the directories of
    zips: int

    @property
    def videos(self) -> int:
        return self.real + self.reused + self.alone

    @property
    def bytes_per_video(self) -> float:
        return self.video_bytes / self.videos if self.videos else math.nan


@dataclass(frozen=True)
class Measured:
    """What a bench file says of one corpus: CPU seconds on one core of its machine, and what came out."""

    corpus: str
    videos: int
    bytes_per_video: float
    per_video: float  # seconds to open, decode and check a video
    per_detected_frame: float  # seconds to look for faces
    per_frame: float  # seconds to crop and encode
    faces_per_frame: float
    bytes_per_face: float
    ray: float | None  # CPU time of all processes under Ray, as a multiple; None: not measured

    def seconds(self, real: int, reused: int, alone: int, *, frames: int, multiplier: int) -> float:
        """CPU seconds for so many videos of each kind."""
        detected = frames * (multiplier * real + alone)
        one_core = self.per_video * (real + reused + alone) + self.per_detected_frame * detected
        return (self.ray or 1.0) * (one_core + self.per_frame * (detected + frames * reused))


def plan(config: PlanConfig) -> None:
    """The `plan` command. UserError for options that make no sense, and where the bench file has nothing like this plan."""
    _check(config)
    if config.index:
        index = _read_index(config.index)
    else:
        index, counts = build_index(config.corpus)
        print_counts(counts)
    work = workloads(index)
    _print_work(work)
    if not any(one.videos for one in work):
        raise UserError("No video has a file: nothing to do.")
    if config.bench is None:
        _say(f"Hours, storage and cost are not known without a measurement. {_HOW}")
        return
    there, content = _read_bench(config.bench)
    known = measured(there, frames=config.frames, multiplier=config.real_multiplier, where=config.bench)
    _print_estimate(config, [(one, nearest(known, one)) for one in work if one.videos], content)


def _check(config: PlanConfig) -> None:
    if bool(config.corpus) == bool(config.index):
        raise UserError("Give either --corpus URI or --index FILE.")
    for name, value, good in (
        ("vcpus", config.vcpus, config.vcpus >= 1),
        ("frames", config.frames, config.frames >= 1),
        ("real-multiplier", config.real_multiplier, config.real_multiplier >= 1),
        ("efficiency", config.efficiency, 0 < config.efficiency <= 1),
        ("price", config.price, config.price is None or config.price >= 0),
    ):
        if not good:
            raise UserError(f"--{name} {value}: makes no sense.")


def _read_index(uri: str) -> pa.Table:
    try:
        index = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
        return index.select(INDEX.names).cast(INDEX)
    except (KeyError, ValueError, pa.ArrowInvalid) as error:
        raise UserError(f"{uri} is not an index ({error}). `dfdc-ray index --corpus URI --out FILE` makes one.") from error


def workloads(index: pa.Table) -> list[Workload]:
    """The videos of an index counted by corpus, corpora in order of their names."""
    corpora: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in index.select(["corpus", "video_id", "uri", "label", "family_id", "size_bytes"]).to_pylist():
        corpora.setdefault(row["corpus"], {}).setdefault(row["family_id"], []).append(row)
    return [_workload(corpus, families.values()) for corpus, families in sorted(corpora.items())]


def _workload(corpus: str, families: Iterable[list[dict[str, Any]]]) -> Workload:
    units = missing = video_bytes = gets = 0
    total, largest = (0, 0, 0), (0, 0, 0)
    zips: set[str] = set()
    for rows in families:
        there = [row for row in rows if row["uri"] is not None]
        guided = any(row["video_id"] == row["family_id"] and row["label"] != "FAKE" for row in there)
        real = sum(row["label"] == "REAL" for row in there)
        alone = sum(row["label"] != "REAL" and (not guided or row["video_id"] == row["family_id"]) for row in there)
        unit = (real, len(there) - real - alone, alone)
        total = (total[0] + unit[0], total[1] + unit[1], total[2] + unit[2])
        largest = max(largest, unit, key=sum)
        units, missing = units + 1, missing + len(rows) - len(there)
        video_bytes += sum(row["size_bytes"] or 0 for row in there)
        gets += sum(_gets(row["uri"], row["size_bytes"] or 0) for row in there)
        zips |= {outermost(row["uri"]) for row in there if outermost(row["uri"]) != row["uri"]}
    return Workload(corpus, units, *total, missing, video_bytes, largest, gets, len(zips))


def _gets(uri: str, size: int) -> int:
    """Requests to read a video: one for a member of a zip, and one more for each zip around that; two for a plain file of more than
    S3_HEAD bytes; a large video is read twice, in pieces.
    """
    once = uri.count("!/") or (1 if size <= storage.S3_HEAD else 2)
    return once if size <= MAX_WHOLE else once + 2 * math.ceil(size / storage.S3_BUFFER)


def _read_bench(uri: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a bench file, and the whole of it."""
    try:
        content = json.loads(storage.read_bytes(uri))
        return list(content["rows"]), content
    except FileNotFoundError as error:
        raise UserError(f"{uri}: not found. {_HOW}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{uri} is not a result of `dfdc-ray bench preprocess` of this version ({error!r}). {_HOW}") from error


def measured(rows: list[dict[str, Any]], *, frames: int, multiplier: int, where: str) -> list[Measured]:
    """What the bench's rows say for these options, by corpus. UserError if they say nothing: other options are not scaled to these.

    where: the file, for messages.
    """
    try:
        fitting = [row for row in rows if (row["frames"], row["multiplier"]) == (frames, multiplier)]
        ray = {row["corpus"]: statistics.median(row["cpu_seconds"]) for row in fitting if row["way"] == "ray"}
        known = [_measured(row, ray.get(row["corpus"]), frames) for row in fitting if row["way"] == "unit"]
        there = sorted({f"--frames {row['frames']} --real-multiplier {row['multiplier']}" for row in rows if row["way"] == "unit"})
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{where} is not a result of `dfdc-ray bench preprocess` of this version ({error!r}). {_HOW}") from error
    if not known:
        raise UserError(
            f"{where} has no measurement of --frames {frames} --real-multiplier {multiplier}, only of {'; '.join(there) or 'none'}. "
            "How the time grows with frames is not known without one: give the same options to `dfdc-ray bench preprocess`."
        )
    return known


def _measured(row: dict[str, Any], ray: float | None, frames: int) -> Measured:
    """From a row of the way `unit`; its units of several videos are taken as an original with its fakes."""
    videos, sampled = row["videos"], row["frames_sampled"]
    detected = sampled - frames * (videos - row["families"] - row["orphans"])
    if not row["faces"]:
        raise UserError(f"The bench file's corpus {row['corpus']} shows no face: measure on videos like those to be done.")
    if detected <= 0:
        raise ValueError(f"{sampled} frames are fewer than its fakes have")
    per_video = statistics.median(row["cpu_seconds"])
    stages = row["seconds_by_stage"]
    share = {name: stages.get(name, 0.0) / sum(stages.values()) for name in ("detect", "crop")}
    return Measured(
        corpus=row["corpus"],
        videos=videos,
        bytes_per_video=row["video_bytes"] / videos,
        per_video=per_video * (1 - share["detect"] - share["crop"]),
        per_detected_frame=per_video * videos * share["detect"] / detected,
        per_frame=per_video * videos * share["crop"] / sampled,
        faces_per_frame=row["faces"] / sampled,
        bytes_per_face=row["shard_bytes"] / row["faces"],
        ray=None if ray is None else max(1.0, ray / per_video),  # less can only be the noise of a busy machine
    )


def nearest(known: list[Measured], work: Workload) -> Measured:
    """The measurement whose videos are closest in size to the corpus's."""
    return min(known, key=lambda m: _ratio(m.bytes_per_video, work.bytes_per_video))


def _ratio(a: float, b: float) -> float:
    """How many times the larger is the smaller; inf where one is unknown."""
    return max(a, b) / min(a, b) if min(a, b) > 0 else math.inf


def _print_work(work: list[Workload]) -> None:
    table = Table(title="To do")
    table.add_column("")
    for one in work:
        table.add_column(one.corpus, justify="right", overflow="fold")
    lines: dict[str, list[str]] = {
        "units (families)": [f"{one.units:,}" for one in work],
        "videos to read": [f"{one.videos:,}" for one in work],
        "  real: detected, with the multiplier": [f"{one.real:,}" for one in work],
        "  fakes that take their original's boxes": [f"{one.reused:,}" for one in work],
        "  others: detected by themselves": [f"{one.alone:,}" for one in work],
        "videos without a file": [f"{one.missing:,}" for one in work],
        "bytes to read": [_size(one.video_bytes) for one in work],
        "  a video": [_size(one.bytes_per_video) for one in work],
    }
    for name, cells in lines.items():
        table.add_row(name, *cells)
    console.print(table)


def _print_estimate(config: PlanConfig, pairs: list[tuple[Workload, Measured]], bench: dict[str, Any]) -> None:
    options = {"frames": config.frames, "multiplier": config.real_multiplier}
    sampled = [config.frames * (config.real_multiplier * w.real + w.reused + w.alone) for w, _ in pairs]
    cpu = [m.seconds(w.real, w.reused, w.alone, **options) for w, m in pairs]
    faces = [frames * m.faces_per_frame for frames, (_, m) in zip(sampled, pairs, strict=True)]
    stored = [count * m.bytes_per_face for count, (_, m) in zip(faces, pairs, strict=True)]
    more = f", {config.real_multiplier} times as many of real ones" if config.real_multiplier > 1 else ""
    table = Table(title=f"Estimate: {config.frames} frames a video{more}")
    table.add_column("")
    for w, _ in pairs:
        table.add_column(w.corpus, justify="right", overflow="fold")
    lines: dict[str, list[str]] = {
        "measured on": [f"{m.corpus}, {m.videos} videos" for _, m in pairs],
        "  bytes a video there": [_size(m.bytes_per_video) for _, m in pairs],
        "  bytes a video here": [_size(w.bytes_per_video) for w, _ in pairs],
        "CPU seconds: real video": [f"{m.seconds(1, 0, 0, **options):.2f}" for _, m in pairs],
        "  fake with its original's boxes": [f"{m.seconds(0, 1, 0, **options):.2f}" for _, m in pairs],
        "  video detected by itself": [f"{m.seconds(0, 0, 1, **options):.2f}" for _, m in pairs],
        "CPU hours": [f"{seconds / _HOUR:,.2f}" for seconds in cpu],
        "frames sampled": [f"{count:,}" for count in sampled],
        "faces": [f"{count:,.0f}" for count in faces],
        "storage": [_size(count) for count in stored],
    }
    for name, cells in lines.items():
        table.add_row(name, *cells)
    console.print(table)
    longest = max(m.seconds(*w.largest_unit, **options) for w, m in pairs)
    vcpu_hours = sum(cpu) / _HOUR / config.efficiency
    took = max(vcpu_hours * _HOUR / config.vcpus, longest)
    _say(f"Together: {vcpu_hours:,.2f} vCPU hours, so about {duration(took)} on {config.vcpus} vCPUs; {_size(sum(stored))} of crops.")
    if config.price is not None:
        _say(f"Cost: {vcpu_hours * config.price:,.2f} USD ({vcpu_hours:,.2f} vCPU hours at {config.price:g} USD).")
    _say(_requests([w for w, _ in pairs], config.vcpus))
    machine = f"{bench.get('machine', {}).get('cpu', 'unknown')}, {bench.get('date', 'no date')}"
    _say("Assumed:")
    _say(f"- a vCPU is as fast as a core of the machine of the measurement ({machine}) with nothing else on it;")
    _say(f"- {config.efficiency:.0%} of the vCPUs' time goes into videos (--efficiency); this is not measured;")
    for w, m in pairs:
        likeness = f"as long, as large and as full of faces as those of {m.corpus}"
        if _ratio(m.bytes_per_video, w.bytes_per_video) > _UNLIKE:
            likeness += (
                f", which their sizes make doubtful ({_size(w.bytes_per_video)}, there {_size(m.bytes_per_video)}): measure some of them"
            )
        _say(f"- {w.corpus}: its videos are {likeness};")
        if m.ray is None:
            _say(f"- Ray's own CPU time is nothing: the file has no row of the way `ray` for {m.corpus};")
        else:
            _say(
                f"- under Ray it takes {m.ray:.2f} times the CPU time of the work itself, as on {m.corpus} (counted in the seconds above);"
            )
    _say("- every fake whose original is there can take its boxes (in the measurement: those in units of several videos);")
    _say("- a video's decoding costs the same whatever its kind, a look for faces the same in every frame;")
    _say("- storage is pictures and their rows; boxes, receipts and ledger come on top (a few kB a video).")
    if config.price is not None:
        _say("The cost is that of the vCPUs alone: neither storage, requests, traffic, the head nor idle nodes.")


def _requests(work: list[Workload], vcpus: int) -> str:
    """What S3 would be asked for, if videos and output were there."""
    units, videos = sum(w.units for w in work), sum(w.videos + w.missing for w in work)
    directories = sum(2 * min(w.units, w.zips * vcpus) for w in work)  # units come zip by zip, and each worker has its share of each
    gets = sum(w.gets for w in work) + directories + units
    lists = math.ceil(videos / _PAGE) + 3 * math.ceil(units / _PAGE)
    return (
        f"Requests, where all is on S3 and none fails: {gets:,} GET (videos, each zip's directory 2 for each worker, 1 for each receipt), "
        f"{4 * units:,} PUT (4 a unit), {lists:,} LIST."
    )


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _size(count: float) -> str:
    """Bytes as a person writes them, in powers of 1000."""
    if math.isnan(count):
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
