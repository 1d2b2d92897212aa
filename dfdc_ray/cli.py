"""The `dfdc-ray` command: one subcommand per task, each a frozen dataclass (config.py) and a function.

dfdc-ray preprocess --corpus s3://bucket/dfdc --out s3://bucket/faces
"""

import importlib
import inspect
import io
import shutil
import sys
import textwrap
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from typing import Any

import tyro
from rich.markup import escape

from dfdc_ray import config
from dfdc_ray.bench import config as bench
from dfdc_ray.console import console, errors
from dfdc_ray.demo import config as drawn
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.experiments import config as experiments

# Functions by name, imported when called: `dfdc-ray index` shall not wait for torch and Ray.
COMMANDS: dict[str, tuple[type, str]] = {
    "index": (config.IndexConfig, "dfdc_ray.corpus.index:index"),
    "plan": (config.PlanConfig, "dfdc_ray.preprocess.estimate:plan"),
    "preprocess": (config.PreprocessConfig, "dfdc_ray.preprocess.run:preprocess"),
    "import": (config.ImportConfig, "dfdc_ray.preprocess.crops:import_crops"),
    "coverage": (config.CoverageConfig, "dfdc_ray.preprocess.coverage:coverage"),
    "pack": (config.PackConfig, "dfdc_ray.shards.run:pack"),
    "train": (config.TrainConfig, "dfdc_ray.train.run:train"),
    "combine": (config.CombineConfig, "dfdc_ray.evaluate.combine:combine"),
    "calibrate": (config.CalibrateConfig, "dfdc_ray.evaluate.run:calibrate"),
    "evaluate": (config.EvaluateConfig, "dfdc_ray.evaluate.run:evaluate"),
    "predict": (config.PredictConfig, "dfdc_ray.serve.score:predict"),
    "serve": (config.ServeConfig, "dfdc_ray.serve.run:serve"),
    "experiments report": (experiments.ExperimentsConfig, "dfdc_ray.experiments.run:report"),
    "experiments models": (experiments.ModelsConfig, "dfdc_ray.experiments.run:models"),
    "experiments bonettini": (experiments.BonettiniConfig, "dfdc_ray.experiments.run:models"),
    "demo": (drawn.DemoConfig, "dfdc_ray.demo.run:demo"),
    "demo-corpus": (drawn.DemoCorpusConfig, "dfdc_ray.demo.corpus:demo_corpus"),
    "doctor": (config.DoctorConfig, "dfdc_ray.doctor:doctor"),
    "bench detectors": (bench.BenchDetectorsConfig, "dfdc_ray.bench.detectors:detectors"),
    "bench preprocess": (bench.BenchPreprocessConfig, "dfdc_ray.bench.preprocess:preprocess"),
    "bench boxes": (bench.BenchBoxesConfig, "dfdc_ray.bench.boxes:boxes"),
    "bench train": (bench.BenchTrainConfig, "dfdc_ray.bench.train:train"),
    "bench scale": (bench.BenchScaleConfig, "dfdc_ray.bench.scale:scale"),
    "bench serve": (bench.BenchServeConfig, "dfdc_ray.bench.serve:serve"),
}

# Every command is in one group: what a person does, in the order in which it is done.
GROUPS: dict[str, tuple[str, ...]] = {
    "try it": ("doctor", "demo", "demo-corpus"),
    "make the data": ("index", "plan", "preprocess", "import", "coverage", "pack"),
    "train": ("train", "combine"),
    "judge": ("calibrate", "evaluate"),
    "use": ("predict", "serve"),
    "experiment": ("experiments report", "experiments models", "experiments bonettini"),
    "measure": ("bench detectors", "bench boxes", "bench preprocess", "bench train", "bench scale", "bench serve"),
}

# At the end of each command's help; lines of at most 78 columns.
EXAMPLES: dict[str, str] = {
    "index": """
dfdc-ray index --corpus /data/dfdc --out out/index.parquet
dfdc-ray index --corpus dfdc=s3://bucket/dfdc --corpus /data/ffpp \\
    --out s3://bucket/index.parquet""",
    "plan": """
dfdc-ray plan --corpus /data/dfdc --vcpus 320
dfdc-ray plan --index out/index.parquet --vcpus 320 --price 0.05 \\
    --bench out/bench/bench_preprocess.json""",
    "preprocess": """
dfdc-ray preprocess --corpus /data/dfdc --out /data/faces
dfdc-ray preprocess --corpus /data/dfdc --out /data/clips \\
    --sampling clips --clips 4 --frames 16 --stride 2
dfdc-ray preprocess --corpus /data/dfdc --out /data/faces --retry error poison""",
    "import": """
dfdc-ray import --crops crops.parquet --out /data/faces --corpus dfdc \\
    --margin 0.3
dfdc-ray import --crops /data/crops --out /data/faces""",
    "coverage": """
dfdc-ray coverage --faces /data/faces""",
    "pack": """
dfdc-ray pack --faces s3://bucket/faces --out s3://bucket/packed""",
    "train": """
dfdc-ray train --faces /data/faces --out /data/run --image-size 128 \\
    --model efficientnet_lite0 --cpus-per-worker 2
dfdc-ray train --faces /data/faces --out /data/run --workers 4 --gpu \\
    --split parts:0-34/35-39/40-49 --cpus-per-worker 8 --batch-size 256
dfdc-ray train --faces /data/clips --out /data/r3d --model r3d_18 \\
    --weights kinetics --image-size 112""",
    "combine": """
dfdc-ray combine --checkpoint /data/a/best --checkpoint /data/b/best \\
    --out /data/mean
dfdc-ray combine --checkpoint /data/a/best --checkpoint /data/b/best \\
    --by logistic --faces /data/faces --out /data/both""",
    "calibrate": """
dfdc-ray calibrate --faces /data/faces --checkpoint /data/run/best""",
    "evaluate": """
dfdc-ray evaluate --faces /data/faces --checkpoint /data/run/best \\
    --out /data/report
dfdc-ray evaluate --faces /data/faces --checkpoint /data/run/best \\
    --out /data/report --robustness --training-faces /data/faces
dfdc-ray evaluate --faces /data/others --checkpoint /data/run/best \\
    --out /data/report --split all""",
    "predict": """
dfdc-ray predict clip.mp4 --checkpoint /data/run/best
dfdc-ray predict a.mp4 b.mp4 --checkpoint /data/run/best --csv
dfdc-ray predict clip.mp4 --checkpoint /data/run/best --report /data/pages""",
    "serve": """
dfdc-ray serve --checkpoint /data/run/best
dfdc-ray serve --checkpoint /data/run/best --port 8080 --max-mb 500""",
    "experiments report": """
dfdc-ray experiments report --corpus /data/sample --out /data/experiments
dfdc-ray experiments report --faces /data/faces --out /data/experiments""",
    "experiments models": """
dfdc-ray experiments models --corpus /data/sample --out /data/models
dfdc-ray experiments models --corpus /data/dfdc --out /data/models --gpu \\
    --split parts:0-34/35-39/40-49 --detectors resnet34 framediff_late chroma
dfdc-ray experiments models --faces /data/faces --out /data/models""",
    "experiments bonettini": """
dfdc-ray experiments bonettini --corpus /data/dfdc --out /data/bonettini \\
    --gpu --cpus-per-worker 8""",
    "demo": """
dfdc-ray demo --out out/demo""",
    "demo-corpus": """
dfdc-ray demo-corpus --out out/corpus
dfdc-ray demo-corpus --out out/sound --families 12 --fakes sound""",
    "doctor": """
dfdc-ray doctor
dfdc-ray doctor --out s3://bucket/faces""",
    "bench detectors": """
dfdc-ray bench detectors --corpus /data/some_videos --out out/bench""",
    "bench preprocess": """
dfdc-ray bench preprocess --corpus /data/some_videos --out out/bench""",
    "bench boxes": """
dfdc-ray bench boxes --corpus /data/marked --marks marks.json --out out/bench""",
    "bench train": """
dfdc-ray bench train --faces /data/faces --out out/bench --image-size 128""",
    "bench scale": """
dfdc-ray bench scale --index out/index.parquet --out out/scale""",
    "bench serve": """
dfdc-ray bench serve --url http://127.0.0.1:8000 --video clip.mp4 \\
    --out out/bench""",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 something to put right, 2 wrong usage or unreadable input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    name = command_of(arguments)
    if name is None:
        return _overview(arguments)
    try:
        _load(COMMANDS[name][1])(parse(name, arguments[len(name.split()) :]))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        errors.print("Interrupted. Run the same command again to go on.")
        return 130
    except (UserError, StorageError, ImportError) as error:
        if debug:
            raise
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    except Exception as error:  # not foreseen: said in one line all the same
        if debug:
            raise
        what = escape(f"{type(error).__name__}: {error}")
        errors.print(f"[bold red]Unexpected error:[/] {what}\n(--debug shows where it came from)", highlight=False, soft_wrap=True)
        return 1
    return 0


def command_of(arguments: list[str]) -> str | None:
    """The command that these words begin with."""
    return next((name for name in COMMANDS if arguments[: len(name.split())] == name.split()), None)


def parse(name: str, arguments: list[str]) -> Any:
    """The settings of a command from the words after its name. SystemExit when help was asked for (it is printed) or they are wrong."""
    if any(word in ("-h", "--help") for word in arguments):
        print(_help(name))
        raise SystemExit(0)
    return tyro.cli(COMMANDS[name][0], prog=f"dfdc-ray {name}", args=_words(arguments))


def _help(name: str) -> str:
    """What a command does, its options as the parser shows them, and examples."""
    cls, width = COMMANDS[name][0], shutil.get_terminal_size().columns
    printed = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding)  # the parser looks at it to know which characters it may draw
    with redirect_stdout(printed), suppress(SystemExit):
        tyro.cli(cls, prog=f"dfdc-ray {name}", description="", args=["--help"])
    printed.seek(0)
    usage, *options = printed.read().splitlines()
    if len(usage) > width:  # neither this line nor a description is wrapped by the parser
        usage = f"usage: dfdc-ray {name} [-h] [OPTIONS]"
    told = [line for text in inspect.cleandoc(cls.__doc__ or "").split("\n\n") for line in textwrap.wrap(text, min(width, 100))]
    return "\n".join([usage, "", *told, *options, "", "Examples:" + EXAMPLES[name].replace("\n", "\n  ")])


def _overview(arguments: list[str]) -> int:
    """Print the commands, or those that begin with a word; exit code 0 when asked for, 2 when a word is not a command."""
    words = [word for word in arguments if word not in ("-h", "--help")]
    asked = not words or any(name.split()[:-1] == words for name in COMMANDS)
    out = console if asked else errors
    if not asked:
        out.print(f"[bold red]Error:[/] no command {escape(' '.join(arguments[:2]))!r}", highlight=False)
    lines = ["usage: dfdc-ray COMMAND \\[options]"]
    for group, names in GROUPS.items():
        if shown := [name for name in names if not asked or name.split()[: len(words)] == words]:
            lines += ["", f"{group}:"]
            lines += [f"  [bold]{name}[/]{' ' * (22 - len(name))} {(COMMANDS[name][0].__doc__ or '').splitlines()[0]}" for name in shown]
    lines += ["", "dfdc-ray COMMAND --help shows its options, with examples; --debug tracebacks."]
    out.print("\n".join(lines), highlight=False, soft_wrap=True)
    return 0 if asked else 2


def _load(path: str) -> Callable[[Any], None]:
    module, name = path.split(":")
    function: Callable[[Any], None] = getattr(importlib.import_module(module), name)
    return function


def _words(arguments: list[str]) -> list[str]:
    """The arguments as the parser takes them: `--corpus A --corpus B` and `--retry error,poison` too."""
    for option in ("--corpus", "--crops", "--retry"):
        arguments = _repeatable(arguments, option)
    start = arguments.index("--retry") if "--retry" in arguments else len(arguments)  # its words are the last
    return arguments[:start] + [word for argument in arguments[start:] for word in argument.split(",")]


def _repeatable(arguments: list[str], option: str) -> list[str]:
    """Gather `--corpus A --corpus B` into the one `--corpus A B` that the parser takes."""
    values: list[str] = []
    rest: list[str] = []
    taking = False
    for argument in arguments:
        if argument == option or argument.startswith(option + "="):
            taking = argument == option
            if not taking:
                values.append(argument.split("=", 1)[1])
        elif taking and not argument.startswith("-"):
            values.append(argument)
        else:
            taking = False
            rest.append(argument)
    return [*rest, option, *values] if values else rest


if __name__ == "__main__":
    sys.exit(main())
