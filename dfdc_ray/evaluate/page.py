"""A report as a page for people: report.html."""

import os
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from dfdc_ray import __version__, pages, storage
from dfdc_ray.evaluate import tables
from dfdc_ray.evaluate.metrics import THRESHOLD
from dfdc_ray.evaluate.mistakes import Face, Mistake
from dfdc_ray.evaluate.report import Report
from dfdc_ray.pages import Section


def page(report: Report, pictures: Mapping[str, bytes], mistakes: Sequence[Mistake], by: Sequence[Section], *, out: str) -> bytes:
    """The whole page, to lie in `out`. pictures: PNGs by their names in tables.PICTURES. by: tables.slices."""
    unscored, worst = tables.losses(report)
    return pages.render(
        "report.html",
        title=report.title,
        made_from=f"dfdc-ray {__version__}, faces {report.protocol.get('data_hash')}",
        warnings=report.warnings,
        tiles=_tiles(report),
        numbers=tables.numbers(report),
        pictures=[(pictures[name], title) for name, title in tables.PICTURES.items()],
        slices=by,
        coverage=tables.coverage(report),
        unscored=unscored,
        worst=worst,
        configuration=tables.configuration(report),
        mistakes=[(mistake, _facts(mistake, report.unit), _places(mistake, out)) for mistake in mistakes],
        maps=any(face.shown.heat for mistake in mistakes for face in mistake.faces),
        moment=_moment,
        what="frames" if report.protocol["configuration"]["faces"].get("crop") == "frame" else "faces",
        maps_of=report.maps_of,
    )


def _tiles(report: Report) -> list[tuple[str, list[str]]]:
    m, baselines, auc = report.video.metrics, report.video.baselines, report.video.intervals.get("auc")
    prior, fake = baselines["constant_prior"], baselines["always_fake"]
    counts = [f"{m.reals:,} real, {m.fakes:,} fake, {report.video.groups:,} groups", f"{len(report.unscored):,} without a score"]
    return [
        (tables.number(m.auc, m), ["ROC AUC by video", f"95 %: {tables.between(auc)}" if auc else "no interval"]),
        (tables.number(m.log_loss, m), ["log loss by video", f"constant prior: {tables.number(prior.log_loss, prior)}"]),
        (tables.number(m.accuracy, m), [f"accuracy at {THRESHOLD} by video", f"always fake: {tables.number(fake.accuracy, fake)}"]),
        (f"{m.n:,}", ["videos", *counts]),
    ]


def _facts(mistake: Mistake, unit: str) -> str:
    v = mistake.video
    said = [
        f"{v.label}, called {'real' if v.label == 'FAKE' else 'fake'} at {v.counted_as:.4f}",
        *filter(None, [v.method]),
        f"{v.frames_scored} of {v.frames_sampled} {unit} scored",
    ]
    return " · ".join(said)


def _places(mistake: Mistake, out: str) -> list[tuple[str, str | None, str]]:
    """The shards of its faces: uri, link (None unless they are on the same disk as the page), and the rows in words."""
    rows: dict[str, list[int]] = {}
    for face in mistake.faces:
        rows.setdefault(face.shard, []).append(face.row)
    return [(shard, link(shard, out), f"row{'s' * (len(some) > 1)} {', '.join(map(str, some))}") for shard, some in rows.items()]


def link(uri: str, out: str) -> str | None:
    """To a file, from a page in `out`; None unless they are on the same disk."""
    if storage.is_s3(uri) or storage.is_s3(out):
        return None
    return quote(os.path.relpath(storage.absolute(uri), storage.absolute(out)))


def _moment(face: Face) -> str:
    """Where in the video a face is, and what it got."""
    at = [f"frame {face.frame}"] if face.frame is not None else []
    at += [f"{face.time_s:.1f} s"] if face.time_s is not None else []
    clip = f"{face.shown.at + 1}. of the clip from " if face.shown.at else ""
    return f"{clip}{', '.join(at)}: {face.score:.4f}"
