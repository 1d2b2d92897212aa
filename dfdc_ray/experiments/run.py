"""The founding report's experiments again, on one corpus, under one protocol, with intervals.

    dfdc-ray experiments report --corpus URI --out OUT

OUT/faces/<name>-<hash>   face shards, one folder for each way of sampling
OUT/cells/<name>-<hash>   train/ and report/ of each line; a line that is done is not done again
OUT/experiments.md .json  the table and what it says
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from dfdc_ray import storage
from dfdc_ray.config import EvaluateConfig, ExperimentsConfig, PreprocessConfig, TrainConfig
from dfdc_ray.console import console
from dfdc_ray.errors import UserError
from dfdc_ray.evaluate.run import evaluate
from dfdc_ray.experiments.cells import IMPROVED_NAME, Cell, cells, curve
from dfdc_ray.experiments.regroup import regroup
from dfdc_ray.experiments.table import Line, console_table, markdown
from dfdc_ray.preprocess.run import preprocess
from dfdc_ray.train.run import train


def report(config: ExperimentsConfig) -> None:
    """The `experiments report` command."""
    lines: list[Line] = []
    todo = cells(config)
    made: set[str] = set()
    for number, cell in enumerate(todo, 1):
        console.rule(f"{number} of {len(todo)} and the learning curve: {cell.name}")
        lines.append(_line(config, cell, made))
    groups = len(next(line for line in lines if line.cell.name == IMPROVED_NAME).train_groups)
    left_out: dict[str, str] = {}
    for cell in curve(config, groups):
        console.rule(f"learning curve: {cell.name}")
        try:
            lines.append(_line(config, cell, made))
        except UserError as error:  # such as that those few groups have no fake
            left_out[cell.name] = str(error)
            console.print(f"[yellow]Left out: {escape(left_out[cell.name])}[/]", soft_wrap=True)
    text = markdown(config, lines, left_out)
    found = {"config": asdict(config), "lines": [{"cell": asdict(line.cell), "report": line.uri} for line in lines], "left_out": left_out}
    storage.write_bytes(storage.join(config.out, "experiments.json"), (json.dumps(found, indent=1) + "\n").encode())
    storage.write_bytes(storage.join(config.out, "experiments.md"), text.encode())
    console.rule("done")
    console_table(lines, console)
    where = storage.join(storage.absolute(config.out), "experiments.md")
    console.print(f"The whole table, and what it says: {where}", markup=False, highlight=False, soft_wrap=True)


def _line(config: ExperimentsConfig, cell: Cell, made: set[str]) -> Line:
    """Do one cell, as far as it is not done. made: the faces that this run has seen to."""
    folder = storage.join(config.out, "cells", cell.key(config))
    uri = storage.join(folder, "report", "report.json")  # the last file of an evaluation
    if not storage.exists(uri):
        faces, split = _faces(config, cell, made)
        out = storage.join(folder, "train")
        train(
            TrainConfig(
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
                workers=config.workers if cell.batch_size % config.workers == 0 else 1,  # the report's batch of 1 is for one
                gpu=config.gpu,
                cpus_per_worker=config.cpus_per_worker,
            )
        )
        evaluate(EvaluateConfig(faces=faces, checkpoint=(storage.join(out, "best"),), out=storage.join(folder, "report")))
    trained: dict[str, Any] = json.loads(storage.read_bytes(storage.join(folder, "train", "best", "config.json")))
    return Line(cell, uri, json.loads(storage.read_bytes(uri)), tuple(trained["train_groups"]))


def _faces(config: ExperimentsConfig, cell: Cell, made: set[str]) -> tuple[str, str]:
    """The cell's face shards, made where they are not there, and the rule that splits them."""
    digest = hashlib.sha256(json.dumps([config.corpus, cell.faces], sort_keys=True).encode()).hexdigest()[:8]
    faces = storage.join(config.out, "faces", f"{cell.faces.get('crop', 'face')}-{cell.faces.get('sampling', 'spread')}-{digest}")
    if faces not in made:
        preprocess(PreprocessConfig(corpus=config.corpus, out=faces, **cell.faces))
        made.add(faces)
    if cell.split_by is None:
        return faces, config.split
    regrouped = f"{faces}-by-{cell.split_by}"
    return regrouped, regroup(faces, regrouped, cell.split_by)
