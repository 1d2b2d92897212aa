"""A report as a page for people: report.html."""

import os
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from dfdc_ray import __version__, pages, storage
from dfdc_ray.evaluate import tables
from dfdc_ray.evaluate.metrics import THRESHOLD
from dfdc_ray.evaluate.mistakes import Mistake
from dfdc_ray.evaluate.report import Report
from dfdc_ray.pages import Section


def page(report: Report, pictures: Mapping[str, bytes], cases: Sequence[Mistake], by: Sequence[Section], *, out: str) -> bytes:
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
        cases=with_links(cases, out),
        maps=any(face.heat for case in cases for face, _ in case.faces),
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


def with_links(found: Sequence[Mistake], out: str) -> list[tuple[Mistake, list[tuple[str, str | None, str]]]]:
    """Cases, and the places of each: shard, link to it (as `link`), rows."""
    return [(case, [(shard, link(shard, out), rows) for shard, rows in case.places]) for case in found]


def link(uri: str, out: str) -> str | None:
    """To a file, from a page in `out`; None unless they are on the same disk."""
    if storage.is_s3(uri) or storage.is_s3(out):
        return None
    return quote(os.path.relpath(storage.absolute(uri), storage.absolute(out)))
