"""The generated corpus: drawn talking heads and fakes of them, in DFDC's own form. `dfdc-ray demo-corpus --out DIR`

Identities come in pairs: each real video shows one of a pair, and the fakes made from it (one family) wear the other's face. A pair is a
group that no split cuts. The same families, seed and length give the same frames and files, whatever the number of processes.
"""

import csv
import io
import json
import multiprocessing
import os
import shutil
import string
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dfdc_ray.console import Work, console
from dfdc_ray.demo.colour import splotched, under_a_lamp
from dfdc_ray.demo.config import DemoCorpusConfig, DrawnFakes
from dfdc_ray.demo.encode import deliver, encode_mp4, make_delivery
from dfdc_ray.demo.identity import Identity, Image, make_identity, stream
from dfdc_ray.demo.scene import FPS, Scene, make_scene, record
from dfdc_ray.demo.swap import DonorFace, make_traces, swap
from dfdc_ray.demo.voice import speak
from dfdc_ray.errors import UserError

VERSIONS: Mapping[DrawnFakes, int] = {"swap": 1, "colour": 1, "sound": 2}  # of what is drawn: another version, other frames
FAKES = 4  # per original
TEST_FAMILIES = 6  # of test_videos/, with one fake each: 12 videos
SECONDS = 2.0
MAX_PARTS = 8
SOUND_FAKES = ("drawn_sound_shift", "drawn_sound_other")
COLOUR_FAKE = "drawn_splotches"
SHIFTS = (0.25, 1.0)  # seconds, either way
SPARE = 1.25  # seconds of voice before and after an original's: the longest shift does not reach the silence before the first word
MARKER = "corpus.json"  # written last: the corpus is whole
PARTIAL = ".partial"
README = """GENERATED: says nothing about real fakes.

These videos show heads drawn by code and simple swaps of them, in the form of the Deepfake Detection Challenge (dfdc_train_part_NN.zip with
metadata.json, test_videos/). They exist to try the software. How well a detector does on them is no sign of how well it does on deepfakes.
groups.csv: identity pairs, which a split must not cut. test_truth.csv: the truth of test_videos/ (1 fake, 0 real).
"""


@dataclass(frozen=True)
class Video:
    """One video to be made."""

    name: str
    original: str | None  # None: it is real
    method: str | None


@dataclass(frozen=True)
class Family:
    """A real video and the fakes of it."""

    index: int  # of the identity shown; the pair's other identity has index ^ 1
    part: int | None  # None: test_videos/
    videos: tuple[Video, ...]  # the real one first

    @property
    def group(self) -> str:
        return f"pair{self.index // 2:03d}"


@dataclass(frozen=True)
class Footage:
    """A video before encoding: frames uint8 [HEIGHT * 3 / 2, WIDTH] (I420)."""

    video: Video
    frames: list[Image]
    scene: Scene
    sound: npt.NDArray[np.float32]  # [samples] at voice.SAMPLE_RATE
    crf: int


def _parts(families: int) -> int:
    return min(MAX_PARTS, -(-families // 2))


def demo_split(families: int) -> str:
    """Split rule for a corpus of so many families: about 5/8 of the parts train, 1/8 validation, 2/8 test.

    Raises UserError when there are too few parts for three splits.
    """
    parts = _parts(families)
    if parts < 3:
        raise UserError(f"A corpus of {families} families has {parts} part(s): too few to split. Use at least 5 families.")
    test, validation = max(1, round(parts / 4)), max(1, round(parts / 8))
    ends = (parts - test - validation, parts - test, parts)
    starts = (0, *ends[:2])
    return "parts:" + "/".join(str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in zip(starts, ends, strict=True))


DEMO_SPLIT = demo_split(DemoCorpusConfig.families)


def demo_corpus(config: DemoCorpusConfig) -> None:
    """The command. Raises UserError when `out` holds something else."""
    write_corpus(config.out, families=config.families, seed=config.seed, fakes=config.fakes)
    said = f"{config.out}: generated corpus of {config.families} families. It says nothing about real fakes."
    console.print(said, highlight=False, soft_wrap=True)


def write_corpus(
    out: str | Path,
    *,
    families: int,
    seed: int,
    seconds: float = SECONDS,
    test_families: int | None = None,
    fakes: DrawnFakes = "swap",
    workers: int | None = None,
) -> None:
    """Write the corpus to the folder `out`: zips by part, test_videos/, groups.csv, test_truth.csv, README.txt, and last corpus.json.

    families: real videos, with FAKES fakes each. test_families: real videos of test_videos/, with one fake each, of further
    identities; by default TEST_FAMILIES, or as many as `families` in a smaller corpus. workers: processes; by default one per CPU.
    A corpus that is there already stays. Raises UserError when `out` holds something else.
    """
    test_families = min(families, TEST_FAMILIES) if test_families is None else test_families
    if families < 1 or seed < 0 or test_families < 0 or seconds * FPS < 2:
        raise UserError(
            f"Need families >= 1, seed >= 0, test families >= 0 and two frames; got {families}, {seed}, {test_families}, {seconds} s."
        )
    folder = Path(out)
    marker: dict[str, float | str] = {
        "version": VERSIONS[fakes],
        "families": families,
        "seed": seed,
        "seconds": seconds,
        "test_families": test_families,
    }
    marker |= {"fakes": fakes} if fakes != "swap" else {}
    if _is_there(folder, marker):
        console.print(f"{folder}: this generated corpus is there already.", highlight=False, soft_wrap=True)
        return
    partial = folder / PARTIAL
    (partial / "test_videos").mkdir(parents=True)
    plan = plan_corpus(families=families, seed=seed, test_families=test_families, fakes=fakes)
    names = [video.name for family in plan for video in family.videos]
    with Work("Drawing", total=len(names), unit="videos") as work:
        for family in _make_all(plan, seed, seconds, partial, workers or os.cpu_count() or 1):
            work.advance(len(family.videos))
    _write_zips(partial, plan)
    _write_tables(partial, plan)
    (partial / "README.txt").write_text(README)
    (partial / "videos").rmdir()
    for entry in sorted(partial.iterdir()):
        entry.rename(folder / entry.name)
    partial.rmdir()
    (folder / f"{MARKER}.tmp").write_text(json.dumps(marker, indent=1) + "\n")
    (folder / f"{MARKER}.tmp").rename(folder / MARKER)


def plan_corpus(*, families: int, seed: int, test_families: int, fakes: DrawnFakes = "swap") -> list[Family]:
    """All families, those of test_videos/ last; names and methods decided."""
    rng = stream(seed, "plan")
    letters = np.array(list(string.ascii_lowercase))
    used: set[str] = set()

    def name() -> str:
        while (new := "".join(rng.choice(letters, 10)) + ".mp4") in used:
            pass
        used.add(new)
        return new

    pairs, parts = -(-families // 2), _parts(families)
    plan = []
    first_test = 2 * pairs
    for index in [*range(families), *range(first_test, first_test + test_families)]:
        original = name()
        names = [name() for _ in range(FAKES if index < families else 1)]
        methods = [_method(fakes, n, name, seed) for n, name in enumerate(names)]
        videos = [Video(fake, original, method) for fake, method in zip(names, methods, strict=True)]
        part = index // 2 * parts // pairs if index < families else None
        plan.append(Family(index, part, (Video(original, None, None), *videos)))
    return plan


def _method(fakes: DrawnFakes, n: int, name: str, seed: int) -> str:
    """Of the n-th fake of an original."""
    if fakes == "swap":
        return make_traces(stream(seed, "traces", name)).method
    return COLOUR_FAKE if fakes == "colour" else SOUND_FAKES[n % len(SOUND_FAKES)]


def identity(seed: int, index: int) -> Identity:
    """Identity number `index` of the corpus. The two of a pair have similar skin."""
    tone = stream(seed, "tone", str(index // 2)).uniform(0, 1)
    return make_identity(stream(seed, "identity", str(index)), tone)


def film(family: Family, *, seed: int, seconds: float) -> Iterator[Footage]:
    """The videos of a family as given to the encoder, the real one first."""
    real = family.videos[0]
    methods = {video.method for video in family.videos}
    spare = SPARE if methods & set(SOUND_FAKES) else 0.0
    scene = make_scene(stream(seed, "scene", real.name), identity(seed, family.index), seconds=seconds, spare=spare)
    recorded = record(scene, stream(seed, "record", real.name))
    if COLOUR_FAKE in methods:
        recorded = under_a_lamp(recorded, stream(seed, "lamp", real.name))
    donor = DonorFace(identity(seed, family.index ^ 1), scene)
    for video in family.videos:
        frames: Sequence[Image] = recorded
        sound = scene.voice.sound
        if video.method in SOUND_FAKES:
            sound = other_sound(video, scene, seed=seed, seconds=seconds)
        elif video.method == COLOUR_FAKE:
            frames = splotched(recorded, scene, stream(seed, "splotches", video.name))
        elif video.original is not None:
            traces = make_traces(stream(seed, "traces", video.name))
            frames = swap(recorded, scene, donor, traces, stream(seed, "swap", video.name))
        delivery = make_delivery(stream(seed, "delivery", video.name))
        yield Footage(video, deliver(frames, delivery), scene, sound, delivery.crf)


def other_sound(video: Video, scene: Scene, *, seed: int, seconds: float) -> npt.NDArray[np.float32]:
    """The same words at another time, or other words in the same voice: cut from a longer voice as the original's is, so that the sound
    alone tells nothing.
    """
    rng = stream(seed, "sound", video.name)
    if video.method == SOUND_FAKES[0]:
        shift = rng.uniform(*SHIFTS) * (1 if rng.random() < 0.5 else -1)
        return scene.spoken.cut(SPARE + shift, seconds).sound
    i = scene.identity
    return speak(rng, seconds=seconds + 2 * SPARE, pitch_hz=i.pitch_hz, formant_scale=i.formant_scale).cut(SPARE, seconds).sound


def _is_there(folder: Path, marker: Mapping[str, float | str]) -> bool:
    """Whether this very corpus is there. What an interrupted run left is removed. Raises UserError about anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Give --out a new folder.")
    names = [path.name for path in folder.iterdir()]
    if names == [PARTIAL]:
        shutil.rmtree(folder / PARTIAL)
    if names in ([], [PARTIAL]):
        return False
    try:
        found = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{folder} is not empty and holds no finished generated corpus. Give --out a new folder.")
    if found != marker:
        there, wanted = ({"fakes": "swap", **each} for each in (found, marker))  # what a marker without that key says
        other = [key for key in {**wanted, **there} if there.get(key) != wanted.get(key)]
        differing = ", ".join(f"{key} {there.get(key)} there, {wanted.get(key)} wanted" for key in other)
        raise UserError(f"{folder} holds another generated corpus ({differing}). Give --out a new folder.")
    return True


def _make_all(plan: list[Family], seed: int, seconds: float, folder: Path, workers: int) -> Iterator[Family]:
    """Make every family's videos under folder/videos; yields the families in order as they are done."""
    (folder / "videos").mkdir()
    jobs = [(family, seed, seconds, folder / "videos") for family in plan]
    if workers == 1:
        yield from map(_make, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(plan)), mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(_make, jobs)


def _make(job: tuple[Family, int, float, Path]) -> Family:
    family, seed, seconds, folder = job
    for footage in film(family, seed=seed, seconds=seconds):
        (folder / footage.video.name).write_bytes(encode_mp4(footage.frames, footage.sound, crf=footage.crf))
    return family


def _write_zips(folder: Path, plan: list[Family]) -> None:
    parts: dict[int, list[Video]] = {}
    for family in plan:
        if family.part is None:
            for video in family.videos:
                (folder / "videos" / video.name).rename(folder / "test_videos" / video.name)
        else:
            parts.setdefault(family.part, []).extend(family.videos)
    for part, videos in parts.items():
        inside = f"dfdc_train_part_{part}"
        entries = sorted(videos, key=lambda video: video.name)
        metadata = {video.name: _metadata(video) for video in entries}
        with zipfile.ZipFile(folder / f"dfdc_train_part_{part:02d}.zip", "w") as archive:
            archive.writestr(_member(f"{inside}/metadata.json"), json.dumps(metadata))
            for video in entries:
                path = folder / "videos" / video.name
                archive.writestr(_member(f"{inside}/{video.name}"), path.read_bytes())
                path.unlink()


def _metadata(video: Video) -> dict[str, str | None]:
    entry: dict[str, str | None] = {"label": "FAKE" if video.original else "REAL", "split": "train", "original": video.original}
    return entry | {"method": video.method} if video.original else entry


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))  # not the clock: the same seed gives the same file
    info.external_attr = 0o644 << 16
    return info


def _write_tables(folder: Path, plan: list[Family]) -> None:
    groups = [(video.name, family.group) for family in plan if family.part is not None for video in family.videos]
    truth = [(video.name, int(video.original is not None)) for family in plan if family.part is None for video in family.videos]
    for name, header, rows in (("groups.csv", ("video", "group"), groups), ("test_truth.csv", ("filename", "label"), truth)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *sorted(rows)])
        (folder / name).write_text(text.getvalue())
