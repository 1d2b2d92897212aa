"""A report as files: report.json (everything), report.html, report.md, its PNGs, scores.csv, mistakes.json (faces of the worst)."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dfdc_ray import storage
from dfdc_ray.evaluate import plots, tables
from dfdc_ray.evaluate.mistakes import Mistake, dump
from dfdc_ray.evaluate.page import page
from dfdc_ray.evaluate.report import Report
from dfdc_ray.pages import Section

FORMAT_VERSION = 1


def write(report: Report, out: str, mistakes: Sequence[Mistake] = ()) -> None:
    """Write all files into the folder or s3:// prefix `out`; report.json last, so that it is there only if the others are.

    mistakes: the worst, with their faces.
    """
    storage.make_dirs(out)
    pictures, by = _pictures(report), tables.slices(report)
    for name, picture in pictures.items():
        storage.write_bytes(storage.join(out, f"{name}.png"), picture)
    storage.write_bytes(storage.join(out, "scores.csv"), scores_csv(report).encode())
    storage.write_bytes(storage.join(out, "report.md"), tables.markdown(report, by).encode())
    storage.write_bytes(storage.join(out, "report.html"), page(report, pictures, mistakes, by, out=out))
    storage.write_bytes(storage.join(out, "mistakes.json"), dump(mistakes))
    storage.write_bytes(storage.join(out, "report.json"), (json.dumps(to_json(report, by), indent=2) + "\n").encode())


def _pictures(report: Report) -> dict[str, bytes]:
    """PNGs by their names in tables.PICTURES."""
    scores = np.array([v.counted_as for v in report.videos])
    labels = np.array([v.label == "FAKE" for v in report.videos], dtype=np.int64)
    scored = np.array([v.score is not None for v in report.videos])
    raw = np.array([v.raw_score for v in report.videos if v.score is not None])
    frames = report.frame_scores, report.frame_labels
    with_score = report.title + (f"; {len(report.unscored)} without a score not shown" if report.unscored else "")
    return {
        "roc": plots.roc((scores, labels), frames, title=report.title, unit=report.unit),
        "pr": plots.pr((scores, labels), frames, title=report.title, unit=report.unit),
        "scores": plots.histograms(scores[scored], labels[scored], title=with_score, calibrated=report.calibrated),
        "reliability": plots.reliability(raw, scores[scored], labels[scored], title=with_score),
    }


def to_json(report: Report, by: Sequence[Section]) -> dict[str, Any]:
    """Everything, as plain values with stable keys; an undefined number is null. sections: as report.html shows them below the curves."""
    return _rounded(
        {
            "format": FORMAT_VERSION,
            "title": report.title,
            "warnings": list(report.warnings),
            "protocol": report.protocol,
            "video": asdict(report.video),
            "frame": asdict(report.frame),
            "videos": [asdict(v) for v in report.videos],
            "videos_without_score": [v.video_id for v in report.unscored],
            "videos_short_tracks": [v.video_id for v in report.videos if v.short_tracks],
            "videos_unlabelled": report.unlabelled_videos,
            "worst": [v.video_id for v in report.worst],
            "rule": report.rule,
            "rules": {rule: asdict(metrics) for rule, metrics in report.rules.items()},
            "robustness": [asdict(line) for line in report.robustness],
            "near_duplicates": None if report.near_duplicates is None else [asdict(pair) for pair in report.near_duplicates],
            "sections": [asdict(section) for section in (*by, tables.coverage(report), *tables.losses(report))],
        }
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")  # single precision has no more to say
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def scores_csv(report: Report) -> str:
    """One line per labelled video; `score` is empty where there was no face, `counted_as` is what the metrics took."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["video_id", "group_id", "label", "status", "score", "counted_as"])
    for v in report.videos:
        writer.writerow([v.video_id, v.group_id, v.label, v.status, "" if v.score is None else f"{v.score:.6f}", f"{v.counted_as:.6f}"])
    return buffer.getvalue()
