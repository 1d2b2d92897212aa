"""Score video files and show the evidence by frame and by face.

    dfdc-ray predict VIDEO... --checkpoint out/train/best [--json | --csv] [--report DIR]

A video goes through the very code that made the training faces (preprocess.unit), with the same detector and crop, so that what the model
sees here is what it was trained on. Nothing is written to disk but what --maps and --report ask for. A video without a face, or one that
cannot be read, gets no score; the exit code is then 2.
"""

import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import PurePosixPath
from typing import Any

from dfdc_ray import storage
from dfdc_ray.config import PredictConfig, PreprocessConfig
from dfdc_ray.console import Work, console, errors
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.evaluate.aggregate import MIN_COVERAGE_PERCENT, describe
from dfdc_ray.evaluate.metrics import THRESHOLD
from dfdc_ray.evaluate.scorer import Scorer, load_scorer
from dfdc_ray.faces.detect import Detector, load_detector
from dfdc_ray.preprocess.plan import Video
from dfdc_ray.preprocess.settings import Settings, settings_of
from dfdc_ray.preprocess.unit import process_video
from dfdc_ray.serve import maps, onepage, show
from dfdc_ray.serve.judge import Evidence, VideoScore, from_the_beginning, judge

FORMAT_VERSION = 1


def score_video(uri: str, scorer: Scorer, detector: Detector | None, settings: Settings) -> Evidence:
    """Score one video (local path or s3:// URI, also a member of a zip). detector, settings: as `load_predictor` gives them.

    Whatever is wrong with this video is in the result; nothing is raised for it.
    """
    video = video_of(uri)
    try:
        result = from_the_beginning(process_video(video, settings, detector, None))
    except StorageError as error:  # cannot be read now: the other videos go on
        return Evidence(video=VideoScore(uri=uri, status="error", stage="open", error=str(error)))
    except Exception as error:  # a library's own trouble with one video
        return Evidence(video=VideoScore(uri=uri, status="error", stage="decode", error=f"{type(error).__name__}: {error}"))
    return judge(uri, result, scorer, settings)


def video_of(uri: str) -> Video:
    """A file of which nothing else is known, as preprocessing takes it."""
    return Video(corpus="", video_id=uri, uri=uri, label=None, method=None, original=None, family_id=uri, group_id=uri, part=None)


def load_predictor(*checkpoints: str, frames: int) -> tuple[Scorer, Detector | None, Settings]:
    """The models, and the detector and settings of their training faces with `frames` frames per video, evenly spread or in clips."""
    scorer = load_scorer(*checkpoints)
    settings = replace(_settings(scorer.faces_config), real_multiplier=1, sound=scorer.sound)
    if scorer.clips:
        settings = replace(settings, clips=max(1, round(frames / settings.frames)))
    else:
        settings = replace(settings, sampling="spread", frames=frames, clips=None, stride=None)
    if settings.detector is None:  # whole frames
        return scorer, None, settings
    detector = load_detector(settings.detector, threshold=settings.detector_threshold, long_side=settings.detector_long_side)
    return scorer, detector, settings


def _settings(faces: dict[str, Any]) -> Settings:
    """How to cut faces as those of training were: for imported ones, our detector with the margin that is known of them."""
    if by := faces.get("regrouped_by"):
        raise UserError(f"The model was trained by a split by {by}, to show how such a split leaks: it is not for use. Take another.")
    if not faces.get("imported"):
        try:
            return Settings(**faces)
        except TypeError as error:
            raise UserError(f"The checkpoint's faces are of another version of dfdc-ray ({error}): preprocess and train again.") from error
    if faces["margin"] is None:
        raise UserError(
            "The model was trained on imported crops, and how wide they were cut is not known, so a video's faces cannot be cut alike. "
            "Import the crops with --margin and train again."
        )
    return settings_of(PreprocessConfig(corpus=(), out="", margin=faces["margin"]))


def predict(config: PredictConfig) -> None:
    """The command. Raises SystemExit(2) at the end when a video has no score, UserError for what is wrong with the options."""
    _check(config)
    scorer, detector, settings = load_predictor(*config.checkpoint, frames=config.frames)
    if config.maps is not None:
        maps.check(scorer)
        storage.make_dirs(config.maps)
    if config.report is not None:
        storage.make_dirs(config.report)
    parseable = config.json or config.csv
    results = []
    with Work("scoring", total=len(config.videos), unit="videos", to=errors if parseable or not console.is_terminal else console) as work:
        for uri in config.videos:
            evidence = score_video(uri, scorer, detector, settings)
            result = evidence.video
            results.append(result)
            if config.maps is not None:
                maps.write(scorer, evidence, config.maps)
            if config.report is not None:
                page = onepage.page(evidence, scorer, name=PurePosixPath(uri).name)
                storage.write_bytes(storage.join(config.report, maps.name_of(uri, ".html")), page)
            work.advance()
            if parseable and result.score is None:
                errors.print(f"{uri}: no score: {result.error}", markup=False, highlight=False, soft_wrap=True)
            elif not parseable:
                show.video(result, console)
    if config.json:
        print(json.dumps(to_json(results, scorer, checkpoints=config.checkpoint, frames=settings.frames * (settings.clips or 1)), indent=2))
    elif config.csv:
        write_csv(results)
    elif len(results) > 1:
        show.summary(results, console)
    if any(result.score is None for result in results):
        raise SystemExit(2)


def _check(config: PredictConfig) -> None:
    if config.json and config.csv:
        raise UserError("--json and --csv exclude each other: give one of them")
    if not config.videos:
        raise UserError("no video given: dfdc-ray predict VIDEO... --checkpoint DIR")
    if config.frames < 1:
        raise UserError(f"--frames {config.frames}: at least 1")
    if config.csv:
        _refuse_equal_names(config.videos)


def to_json(results: Sequence[VideoScore], scorer: Scorer, *, checkpoints: Sequence[str], frames: int) -> dict[str, Any]:
    """Everything that is known, as plain values."""
    return {
        "format": FORMAT_VERSION,
        "checkpoint": ", ".join(checkpoints),
        "model": scorer.config["model"],
        "threshold": THRESHOLD,
        "aggregation": describe(scorer.rule),
        "min_coverage_percent": MIN_COVERAGE_PERCENT,
        "frames_per_video": frames,
        "videos": [asdict(result) for result in results],
    }


def _name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def _refuse_equal_names(uris: Sequence[str]) -> None:
    twice = [name for name, count in Counter(map(_name, uris)).items() if count > 1]
    if twice:
        raise UserError(f"--csv names videos by file name alone, and {len(twice)} occur twice ({', '.join(twice[:3])}): score them apart")


def write_csv(results: Sequence[VideoScore]) -> None:
    """Kaggle's filename,label on stdout; a video without a score is left out, since any number there would be invented."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["filename", "label"])
    writer.writerows([_name(result.uri), f"{result.score:.6f}"] for result in results if result.score is not None)
