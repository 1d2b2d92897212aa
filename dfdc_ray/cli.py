"""The `dfdc-ray` command: one subcommand per task, each a frozen dataclass (config.py) and a function.

dfdc-ray preprocess --corpus s3://bucket/dfdc --out s3://bucket/faces
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import tyro
from rich.markup import escape
from rich.table import Table

from dfdc_ray import config
from dfdc_ray.bench import config as bench
from dfdc_ray.console import console, errors
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
    "demo": (config.DemoConfig, "dfdc_ray.demo.run:demo"),
    "demo-corpus": (config.DemoCorpusConfig, "dfdc_ray.demo.corpus:demo_corpus"),
    "doctor": (config.DoctorConfig, "dfdc_ray.doctor:doctor"),
    "bench detectors": (bench.BenchDetectorsConfig, "dfdc_ray.bench.detectors:detectors"),
    "bench preprocess": (bench.BenchPreprocessConfig, "dfdc_ray.bench.preprocess:preprocess"),
    "bench boxes": (bench.BenchBoxesConfig, "dfdc_ray.bench.boxes:boxes"),
    "bench train": (bench.BenchTrainConfig, "dfdc_ray.bench.train:train"),
    "bench scale": (bench.BenchScaleConfig, "dfdc_ray.bench.scale:scale"),
    "bench serve": (bench.BenchServeConfig, "dfdc_ray.bench.serve:serve"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 something to put right, 2 wrong usage or unreadable input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    name = next((n for n in COMMANDS if arguments[: len(n.split())] == n.split()), None)
    if name is None:
        return _overview(arguments)
    cls, function = COMMANDS[name]
    try:
        settings: Any = tyro.cli(cls, prog=f"dfdc-ray {name}", args=_words(arguments[len(name.split()) :]))
        _load(function)(settings)
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


def _overview(arguments: list[str]) -> int:
    """Print the commands; exit code 0 when asked for, 2 when a word is not a command."""
    if asked := arguments in ([], ["--help"], ["-h"]):
        out = console
    else:
        out = errors
        out.print(f"[bold red]Error:[/] no command {escape(' '.join(arguments[:2]))!r}", highlight=False)
    out.print("usage: dfdc-ray COMMAND \\[options]     (dfdc-ray COMMAND --help; --debug shows tracebacks)\n", highlight=False)
    table = Table(box=None, show_header=False)
    for name, (cls, _) in COMMANDS.items():
        table.add_row(f"  [bold]{name}[/]", (cls.__doc__ or "").strip().splitlines()[0])
    out.print(table)
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
