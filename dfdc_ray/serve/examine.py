"""What becomes of one uploaded video: decoded in a process that may be killed, scored, its faces drawn with what the model looked at."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfdc_ray.evaluate.heat import drawn, explains, shown
from dfdc_ray.evaluate.scorer import Scorer, weights_of
from dfdc_ray.faces.crop import decode, encode
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.supervise import Unreadable, Worker
from dfdc_ray.preprocess.unit import VideoResult
from dfdc_ray.serve import maps, onepage, show
from dfdc_ray.serve.jobs import Progress, Refused
from dfdc_ray.serve.judge import Evidence, from_the_beginning, judge
from dfdc_ray.serve.score import to_json, video_of

MOST_HEAT = 128  # pictures of a video that get a heat map
MOST_FACES = 2000  # pictures of a video that are scored: some minutes on two cores, which nothing else limits
_PATH = re.compile(r"(?:/[^/\s:'\"]+){2,}")
_BEGINS = re.compile(r" It begins with b(['\"]).*\1\.$")  # for whoever looks into a corpus; nothing to whoever sent a video
_LIBRARY = re.compile(r"[\w.]*([Ee]rror|Exception): ")  # as preprocess.child names what nobody foresaw
_TOO_SHORT = "no clip of the length"  # in what preprocess.unit says, as is the next
_MEMORY = "--video-memory-mb"  # in what preprocess.unit says
_HINT = "Try an MP4 with H.264, which any phone or editor can write."
_AGAIN = "Download or copy it again; if that does not help, write it anew as an MP4 with H.264."
_DAMAGED = re.compile(r"\b(damaged|decoded)\b")
_ADVICE = re.compile(r"\b(download|convert|cut it|scale|remux)\b", re.IGNORECASE)  # in what the modules below say


@dataclass(frozen=True, kw_only=True)
class Finding:
    """All that is kept of a video."""

    document: dict[str, Any]  # result.json
    faces: tuple[bytes, ...]  # JPEG, by number
    heat: dict[int, bytes]  # JPEG, by the same number
    maps: bytes | None  # PNG: what the model looked at, of models that can show it
    printed: bytes  # the printable page

    @property
    def size(self) -> int:
        """Bytes of the pictures."""
        return sum(map(len, [*self.faces, *self.heat.values(), self.maps or b"", self.printed]))


class Examiner:
    """Makes Findings of files, one at a time; `close` ends the decoding process."""

    def __init__(self, scorer: Scorer, settings: Settings, *, timeout_s: float, memory_bytes: int, longest_s: float) -> None:
        self.scorer, self.settings = scorer, settings
        # One fault is enough, since others wait; of two kills the first may be the kernel's that picked the wrong process.
        self._worker = Worker(settings, timeout_s=timeout_s, memory_bytes=memory_bytes, longest_s=longest_s, faults=1, kills=2)

    def __call__(self, path: Path, name: str, progress: Progress) -> Finding:
        """Examine a file. name: as it is called wherever it is shown. Refused for what is wrong with the video."""
        progress("read", None)
        counting = _Counting(progress, self.settings.frames * (self.settings.clips or 1))
        self._worker.on_stage, self._worker.on_wait = counting, counting.again
        try:
            result = from_the_beginning(self._worker.process(video_of(str(path)), None))
        except Unreadable as error:
            raise Refused(f"{_sentence(_said(str(error), path))} Try again.") from error
        if result.ledger["status"] not in ("ok", "no_face"):
            raise Refused(_refusal(result, path, self.settings))
        if result.ledger["frames_wanted"] == 1 < self.settings.frames:
            raise Refused("This is a single picture, and only videos are scored. Send a video of two frames or more.")
        if len(result.faces) > MOST_FACES:
            raise Refused(
                f"There are {len(result.faces)} faces in the frames that were looked at, and at most {MOST_FACES} are scored. "
                "Cut out the part of the picture that matters."
            )
        progress("score", None)
        evidence = judge(name, result, self.scorer, self.settings, on_batch=lambda share: progress("score", share))
        if evidence.video.status == "error":
            raise Refused(_said(f"No score: {evidence.video.error}. Send a video with its sound.", path))  # no other is left here
        progress("heat", None)
        faces, heat = _drawn(self.scorer, evidence, lambda share: progress("heat", share))
        progress("report", None)
        can = evidence.pictures and maps.shows(self.scorer)
        picture = maps.draw(self.scorer, evidence, title=name) if can else None
        document = _document(self.scorer, self.settings, evidence, result, heat=set(heat), has_maps=picture is not None)
        printed = onepage.page(evidence, self.scorer, name=name)
        return Finding(document=document, faces=faces, heat=heat, maps=picture, printed=printed)

    def close(self) -> None:
        """End the decoding process."""
        self._worker.stop()


class _Counting:
    """Turns the decoding process' stages into progress: each frame that was searched for faces ends in the stage "align"."""

    def __init__(self, progress: Progress, frames: int) -> None:
        self.progress, self.frames, self.done = progress, frames, 0
        self.last: tuple[str, float | None] = ("read", None)

    def again(self) -> None:
        """Nothing is new: whether the video is still wanted is asked all the same."""
        self.progress(*self.last)

    def __call__(self, stage: str) -> None:
        if stage == "probe":  # the beginning, also of a second try
            self.done = 0
        self.done += stage == "align"
        self.last = ("read", None) if stage in ("open", "probe") else ("faces", min(1.0, self.done / self.frames))
        self.progress(*self.last)


def card(scorer: Scorer, settings: Settings) -> dict[str, Any]:
    """What is to be known of the models, without any path: for people and programs."""
    config, calibration = scorer.config, scorer.calibration
    members = [
        {
            "model": member.name,
            "input_pixels": member.transform["image_size"],
            "looks_at": "clips" if member.clips else "single frames",
            "heat_maps": explains(member),
        }
        for member in scorer.members
    ]
    return {
        "model": config["model"],
        "weights_sha256": weights_of(config),
        "members": members,
        "listens": scorer.sound,
        "calibrated": calibration is not None,
        "calibration": calibration.describe() if calibration else None,
        "split": config.get("split"),
        "training_groups": len(config.get("train_groups", ())),
        "detector": settings.detector,
        "crop_margin": settings.margin,
        "frames": settings.frames * (settings.clips or 1),
        "heat_maps": any(map(explains, scorer.members)),
        "maps": maps.shows(scorer),
        "versions": config.get("versions", {}),
    }


def _drawn(scorer: Scorer, evidence: Evidence, on_batch: Callable[[float], None]) -> tuple[tuple[bytes, ...], dict[int, bytes]]:
    """JPEGs of the faces (of clips their first frames, whose time is theirs), and by row under their heat maps: where there are too many,
    of those that decide first."""
    most = MOST_HEAT // max(map(len, evidence.pictures), default=1)
    first = evidence.deciding
    rest = sorted(set(range(len(evidence.scores))).difference(first), key=lambda n: -evidence.scores[n])
    chosen = sorted([*first, *rest][:most])
    found = shown(scorer, [evidence.pictures[n] for n in chosen], of_clip=1, on_batch=on_batch)
    heat = {n: one.heat for n, (one,) in zip(chosen, found, strict=True) if one.heat}
    return tuple(_jpeg(pictures[0]) for pictures in evidence.pictures), heat


def _jpeg(picture: bytes) -> bytes:
    return picture if picture.startswith(b"\xff\xd8") else encode(decode(picture), "jpeg")


def _document(
    scorer: Scorer, settings: Settings, evidence: Evidence, result: VideoResult, *, heat: set[int], has_maps: bool
) -> dict[str, Any]:
    """As `dfdc-ray predict --json`, and what a page needs besides. faces: in the order of the pictures' numbers."""
    video = evidence.video
    counted = set(evidence.deciding)
    with_face = {row["frame"] for row in result.faces}  # evidence is not all of them: a model that listens leaves out those without sound
    faces: Sequence[dict[str, Any]] = [
        {
            "n": n,
            "track_id": row["track_id"] or 0,
            "frame": row["frame"],
            "time_s": row["time_s"],
            "score": score,
            "counted": n in counted,
            "heat": n in heat,
        }
        for n, (row, score) in enumerate(zip(evidence.rows, evidence.scores, strict=True))
    ]
    weights = [f"weights {one[:12]}" for one in weights_of(scorer.config).split("; ")]
    return to_json([video], scorer, checkpoints=weights, frames=settings.frames * (settings.clips or 1)) | {
        "faces": faces,
        "frames_without_face": [{"frame": frame, "time_s": time_s} for frame, time_s in result.sampled if frame not in with_face],
        "calibrated": scorer.calibration is not None,
        "unit": video.unit,
        "drawn": drawn(scorer),
        "shown": None if video.score is None else show.shown(video),
        "guess": video.score is not None and show.is_guess(video),
        "sureness": None if video.score is None else show.sureness(video),
        "meaning": None if video.score is None else show.meaning(video),
        "maps": has_maps,
    }


def _refusal(result: VideoResult, path: Path, settings: Settings) -> str:
    """Why a video has no result, and what to do."""
    ledger = result.ledger
    if _MEMORY in str(ledger["error"]):
        return "This video needs more memory than one may take. Make its picture smaller, or cut it shorter."
    if ledger["status"] == "poison":
        return f"Reading this video ({ledger['stage']}) crashed, or took too long or too much memory. It may be damaged. {_HINT}"
    if _TOO_SHORT in str(ledger["error"]):
        stride = settings.stride or 1
        runs = f"runs of {settings.frames} frames" + (f", every {stride}. of the video" if stride > 1 else "")
        least = (settings.frames - 1) * stride + 1
        return f"This video is too short: the model looks at {runs}, for which it must have {least} frames or more. Send a longer one."
    if _LIBRARY.match(str(ledger["error"])):  # a name and words of a library's, for whoever looks into its code
        return f"This video could not be read (at the stage {ledger['stage']}). It may be damaged. {_HINT}"
    said = _sentence(_BEGINS.sub("", _said(str(ledger["error"]), path)))
    if _ADVICE.search(said):
        return said
    return f"{said} {_AGAIN if _DAMAGED.search(said) else _HINT}"


def _sentence(said: str) -> str:
    return said if said.endswith(".") else f"{said}."


def _said(text: str, path: Path) -> str:
    """A message without the place where the file lay, or any other path."""
    text = _PATH.sub("the file", text.replace(str(path), "the video"))
    return text[:1].upper() + text[1:]
