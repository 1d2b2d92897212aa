"""The founding report's experiments again, and all detectors side by side: each on one corpus, under one protocol, with intervals.

    dfdc-ray experiments report --corpus URI --out OUT        (or --faces FACES)

OUT/faces/<name>-<hash>   face shards, one folder for each way of sampling or grouping
OUT/cells/<name>-<hash>   train/ and report/ (with --robustness: report-robustness/) of each line; what is done is not done again
OUT/experiments.md .json  the table and what it says; report.html the same as a page

    dfdc-ray experiments models --corpus URI --out OUT        (or --faces FACES)

OUT/faces                 face shards, of which all lines are made
OUT/lines/<name>-<hash>   train/ (or combination/) and report/ of each line; as many at a time as the GPUs or CPUs allow
OUT/models.md .json .png  the table, and AUC against cost; report.html the same as a page
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import ray
import torch
from rich.markup import escape

from dfdc_ray import storage
from dfdc_ray.cluster.run import connect, cores, joined, require
from dfdc_ray.config import CombineConfig, EvaluateConfig, PreprocessConfig, TrainConfig
from dfdc_ray.console import Work, console
from dfdc_ray.corpus.splits import assign, describe
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate.combine import combine
from dfdc_ray.evaluate.run import evaluate, write_report
from dfdc_ray.experiments import models_table, table
from dfdc_ray.experiments.cells import REPORTS_BATCH, Cell, cells, curve, report_name, wanting
from dfdc_ray.experiments.config import ExperimentsConfig, ModelsConfig
from dfdc_ray.experiments.models import (
    Detector,
    Task,
    cannot_be_had,
    chosen,
    combinations,
    faces_of,
    macs_a_video,
    parameters,
    preprocessing,
    trainings,
    with_given_faces,
)
from dfdc_ray.experiments.regroup import regroup
from dfdc_ray.experiments.table import Line
from dfdc_ray.models import create_model, load_weights, pretrained
from dfdc_ray.preprocess.run import preprocess
from dfdc_ray.shards.manifest import read_ledger, read_manifest
from dfdc_ray.train import memory
from dfdc_ray.train.loop import train_loop
from dfdc_ray.train.plan import check_options, prepare, steps_an_epoch
from dfdc_ray.train.run import train

_RETRIES = 3  # of a line of `models`, after as many losses of the machine that makes it


def report(config: ExperimentsConfig) -> None:
    """The `experiments report` command. A line that cannot be had is said and loses no other; then UserError at the end, after the table is
    written. UserError at once for the improved one, with which the others are compared.
    """
    _check_source(config)
    describe(config.split)
    if config.faces is not None and (config.frames, config.frame_size) != (ExperimentsConfig.frames, ExperimentsConfig.frame_size):
        raise UserError("--frames and --frame-size are for --corpus: those of --faces are as they were made.")
    todo = cells(config)
    check_options(_training(config, next(cell for cell in todo if cell.improved), "", config.split, ""))
    load_weights(create_model(TrainConfig.model), config.weights)  # refused here, not after hours of preprocessing
    lines: list[Line] = []
    left_out: dict[str, str] = {}
    made: set[str] = set()

    def add(cell: Cell) -> None:
        try:
            lines.append(_line(config, cell, made))
        except UserError as error:  # such as that so few groups have no fake
            if cell.improved:
                raise
            left_out[cell.name] = str(error)
            console.print(f"[yellow]Left out: {escape(left_out[cell.name])}[/]", soft_wrap=True)

    for number, cell in enumerate(todo, 1):
        console.rule(f"{number} of {len(todo)} and the learning curve: {cell.name}")
        add(cell)
    improved = next(line for line in lines if line.cell.improved)

    def steps(groups: int) -> int:
        faces, split = _faces(config, improved.cell, made)
        return steps_an_epoch(_training(config, replace(improved.cell, groups=groups), faces, split, ""))

    for cell in curve(config, len(improved.train_groups), steps):
        console.rule(f"learning curve: {cell.name}")
        add(cell)
    own = {line.cell.name: table.own_of(line.uri, line.report, config.out) for line in lines}
    missing = wanting(config) | left_out
    text, page = table.markdown(config, lines, missing), table.page(config, lines, missing, own)
    found = {"config": asdict(config), "lines": [{"cell": asdict(line.cell), "report": line.uri} for line in lines], "left_out": missing}
    storage.write_bytes(storage.join(config.out, "experiments.json"), (json.dumps(found, indent=1) + "\n").encode())
    storage.write_bytes(storage.join(config.out, "experiments.md"), text.encode())
    storage.write_bytes(storage.join(config.out, "report.html"), page)
    console.rule("done")
    table.console_table(lines, console)
    where = storage.join(storage.absolute(config.out), "report.html")
    console.print(f"The whole table, and what it says: {where}", markup=False, highlight=False, soft_wrap=True)
    if left_out:
        whole = len(lines) + len(left_out)
        raise UserError(f"{len(left_out)} of {whole} lines could not be had: {', '.join(left_out)}. experiments.md says why.")


def _check_source(config: ExperimentsConfig | ModelsConfig) -> None:
    if bool(config.corpus) == (config.faces is not None):
        raise UserError("Give --corpus, of which faces are made, or --faces, made before: one of the two.")


def _line(config: ExperimentsConfig, cell: Cell, made: set[str]) -> Line:
    """Do one cell, as far as it is not done. made: the faces that this run has seen to."""
    faces, split = _faces(config, cell, made)
    folder = storage.join(config.out, "cells", cell.key(config, _hash_of(faces)))
    judged = storage.join(folder, report_name(robustness=config.robustness))
    uri = storage.join(judged, "report.json")  # the last file of an evaluation
    if not storage.exists(uri):
        out = storage.join(folder, "train")
        train(_training(config, cell, faces, split, out))
        evaluate(EvaluateConfig(faces=faces, checkpoint=(storage.join(out, "best"),), out=judged, robustness=config.robustness))
    trained: dict[str, Any] = json.loads(storage.read_bytes(storage.join(folder, "train", "best", "config.json")))
    own, videos = _own(faces, split, trained["train_groups"])
    trained_in = f"{trained['device']}, {trained['precision']}" if "device" in trained else None  # older checkpoints do not say
    steps = trained["step"] // trained["epoch"] * cell.epochs
    return Line(cell, uri, json.loads(storage.read_bytes(uri)), own, videos, steps, trained_in)


def _training(config: ExperimentsConfig, cell: Cell, faces: str, split: str, out: str) -> TrainConfig:
    return TrainConfig(
        faces=faces,
        out=out,
        split=split,
        weights=config.weights,
        objective=cell.objective,
        balance=cell.balance,
        groups=cell.groups,
        epochs=cell.epochs,
        batch_size=cell.batch_size,
        learning_rate=cell.learning_rate,
        image_size=cell.image_size,
        seed=config.seed,
        workers=1 if cell.batch_size == REPORTS_BATCH else config.workers,  # a batch of 1 is for one
        gpu=config.gpu,
        cpus_per_worker=config.cpus_per_worker,
    )


def _own(faces: str, split: str, groups: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Of the groups that a model was trained on those of this split (what its first weights had seen before is no part of the curve), and
    how many labelled videos those have from which there is a face or a whole frame.
    """
    ledger = [row for row in read_ledger(faces).to_pylist() if row["label"] is not None]  # others have no part to be split by, either
    parts = {row["group_id"]: row["part"] for row in ledger}
    of = dict(zip(parts, assign(split, list(parts), list(parts.values())), strict=True))
    own = tuple(group for group in groups if of.get(group) == "train")
    there = set(own)
    return own, sum(row["group_id"] in there and row["status"] == "ok" for row in ledger)


def _faces(config: ExperimentsConfig, cell: Cell, made: set[str]) -> tuple[str, str]:
    """The cell's face shards, made where they are not there, and the rule that splits them."""
    if config.faces is None:
        digest = hashlib.sha256(json.dumps([config.corpus, cell.faces], sort_keys=True).encode()).hexdigest()[:8]
        name = f"{cell.faces.get('crop', 'face')}-{cell.faces.get('sampling', 'spread')}-{digest}"
        faces = storage.join(config.out, "faces", name)
        if faces not in made:
            preprocess(PreprocessConfig(corpus=config.corpus, out=faces, max_error_share=1.0, **cell.faces))  # the tables count what failed
            made.add(faces)
    else:
        name, faces = "given", config.faces
    if cell.split_by is None:
        return faces, config.split
    regrouped = storage.join(config.out, "faces", f"{name}-by-{cell.split_by}-{_hash_of(faces)[:8]}")  # another folder for other faces
    return regrouped, regroup(faces, regrouped, cell.split_by)


def _hash_of(faces: str) -> str:
    """Of a folder's faces, and of what became of each video: one without a face is judged too, and is in no shard."""
    names = ("video_id", "group_id", "part", "label", "method", "status", "core_decoded")
    videos = [[row.get(name) for name in names] for row in read_ledger(faces).to_pylist()]
    return hashlib.sha256(json.dumps([read_manifest(faces).data_hash, videos]).encode()).hexdigest()


def models(config: ModelsConfig) -> None:
    """The `experiments models` command. UserError at the end when a line failed; the table of the others is written before."""
    _check_source(config)
    describe(config.split)
    config = replace(config, out=storage.absolute(config.out), faces=config.faces and storage.absolute(config.faces))
    if config.faces is not None:
        config = with_given_faces(config)
    detectors = chosen(config)
    _check_some(trainings(config, detectors, faces_hash=""))
    faces = faces_of(config)
    if config.faces is None:
        _check_weights(config, detectors)
        preprocess(preprocessing(config))
    left_out = cannot_be_had(config, detectors)
    tasks = trainings(config, [d for d in detectors if d.name not in left_out], faces_hash=_hash_of(faces))
    failed = _all(tasks, config)
    combined = combinations(config, [task for task in tasks if task.name not in failed])
    failed |= _all(combined, config)
    lines = [_line_of(task, config) for task in (*tasks, *combined) if task.name not in failed]
    found = [
        {"name": line.task.name, "report": line.task.report, "macs_a_video": line.macs, "parameters": line.parameters} for line in lines
    ]
    whole = {"config": asdict(config), "lines": found, "failed": failed, "left_out": left_out}
    picture, own = models_table.plot(lines), {line.task.name: table.own_of(line.task.report, line.report, config.out) for line in lines}
    for name, data in (
        ("models.png", picture),
        ("report.html", models_table.page(config, lines, left_out | failed, picture, own)),
        ("models.json", (json.dumps(whole, indent=1) + "\n").encode()),
        ("models.md", models_table.markdown(config, lines, left_out | failed).encode()),
    ):
        storage.write_bytes(storage.join(config.out, name), data)
    console.rule("done")
    models_table.console_table(lines, config, console)
    console.print(
        f"The whole table, and the plot: {storage.join(config.out, 'report.html')}", markup=False, highlight=False, soft_wrap=True
    )
    if not lines:
        raise UserError("No line could be had: " + "; ".join(f"{name}: {why}" for name, why in (left_out | failed).items()))
    failed |= {name: why for name, why in left_out.items() if name in config.detectors}
    if failed:
        of = len(tasks) + len(combined) + len(failed.keys() & left_out.keys())
        raise UserError(f"{len(failed)} of {of} lines could not be had: {', '.join(failed)}. models.md says why.")


def _check_some(tasks: Sequence[Task]) -> None:
    """UserError for options by which no line can be trained, before hours of preprocessing rather than after."""
    refused = None
    for task in tasks:
        assert isinstance(task.make, TrainConfig)
        try:
            check_options(task.make)
        except UserError as error:
            refused = refused or error
        else:
            return
    if refused:
        raise refused


def _check_weights(config: ModelsConfig, detectors: Sequence[Detector]) -> None:
    """UserError for first weights that cannot be had, before hours of preprocessing rather than after."""
    if config.weights == "pretrained" and not storage.exists(storage.join(faces_of(config), "manifest.json")):
        for model in dict.fromkeys(detector.model for detector in detectors):
            load_weights(create_model(model), pretrained(model))


def _line_of(task: Task, config: ModelsConfig) -> models_table.Line:
    trained = None
    if isinstance(task.make, TrainConfig):
        trained = json.loads(storage.read_bytes(storage.join(task.checkpoint, "config.json")))
    return models_table.Line(
        task=task,
        report=json.loads(storage.read_bytes(task.report)),
        trained=trained,
        parameters=sum(parameters(detector.model) for detector in task.detectors),
        macs=macs_a_video(task, config),
    )


def _all(tasks: Sequence[Task], config: ModelsConfig) -> dict[str, str]:
    """Do those that are not done, as many at a time as Ray has room for; by name, why one could not be."""
    todo = [task for task in tasks if not storage.exists(task.report)]
    if not todo:
        return {}
    connect()
    gpus = 1 if config.gpu else 0
    require(cpus=config.cpus_per_worker, gpus=gpus)
    environment = {} if config.gpu else {"env_vars": memory.ENVIRONMENT}
    do = ray.remote(num_cpus=config.cpus_per_worker, num_gpus=gpus, max_retries=_RETRIES, runtime_env=environment)(_do)
    at_a_time = len(todo) if joined() else max(1, cores() // config.cpus_per_worker)
    waiting = todo[::-1]
    running: dict[ray.ObjectRef, Task] = {}
    failed: dict[str, str] = {}
    with Work("detectors", total=len(todo), unit="lines") as work:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                task = waiting.pop()
                running[do.options(name=task.name).remote(task, config.cpus_per_worker)] = task
            (ended,), _ = ray.wait(list(running), num_returns=1)
            task = running.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                failed[task.name] = str(cause).strip() if isinstance(cause, UserError) else f"{type(cause).__name__}: {str(cause).strip()}"
                console.print(f"[yellow]{escape(task.name)}: {escape(failed[task.name])}[/]", soft_wrap=True)
            work.advance(detail=task.name)
    return failed


def _do(task: Task, threads: int) -> None:
    """Make one line. A training goes on from its newest checkpoint, also after its node died."""
    torch.set_num_threads(threads)
    if isinstance(task.make, CombineConfig):
        combine(task.make)
    else:
        train_loop(task.make, prepare(task.make), device=torch.device("cuda" if task.make.gpu else "cpu"))
    write_report(task.judge)
