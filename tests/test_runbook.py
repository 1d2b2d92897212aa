"""docs/cluster.md: its messages are those of the code, its commands parse, its files exist; and what a submitted job carries along."""

import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

from dfdc_ray.cli import COMMANDS, _words

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "cluster.md").read_text()
# Where Ray says what the page quotes of it.
RAY = (
    *("_private/utils.py", "_private/runtime_env/packaging.py", "_private/authentication/http_token_authentication.py"),
    *("autoscaler/_private/aws/config.py", "autoscaler/_private/aws/node_provider.py", "autoscaler/_private/commands.py"),
    *("autoscaler/v2/utils.py", "data/_internal/execution/no_progress_guard.py"),
)
OTHERS = re.compile(r"\[(Docker|Kubernetes|KubeRay|Ray's core)")  # say things that stand in no source here


def failures() -> list[tuple[str, str]]:
    """(symptom, message) of each row of the table of failures."""
    table = TEXT.split("## What each failure looks like")[1]
    rows = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in table.splitlines() if line.startswith("|")][2:]
    assert all(len(row) == 4 for row in rows), [row for row in rows if len(row) != 4]
    return [(row[0], row[1]) for row in rows]


def commands() -> Iterator[list[str]]:
    """Each of our commands on the page, continued lines joined: its name, then its options."""
    joined = re.sub(r"\\\n\s*|(?<!\n)\n {1,3}(?=\S)", " ", TEXT)
    for program, rest in re.findall(r"python (jobs/\w+\.py|-m dfdc_ray\.cli)([^\n`]*)", joined):
        name = [Path(program).stem] if program.startswith("jobs/") else []
        yield [*name, *shlex.split(rest, comments=True)]
    for rest in re.findall(r"`dfdc-ray ([^`]*)`", joined):
        yield shlex.split(rest.replace("\n", " "))


@pytest.fixture(scope="module")
def sources() -> str:
    """What our code and Ray's say, literals that Python joins joined."""
    import ray

    files = [*(ROOT / "dfdc_ray").rglob("*.py"), *(Path(ray.__file__).parent / name for name in RAY)]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))


def test_the_page_says_what_was_never_run() -> None:
    section = TEXT.split("## What has never been run on a real cloud")[1].split("\n## ")[0]
    for what in ("docker build", "ray up", "spot", "IAM", "KubeRay", "GPU"):
        assert what in section.split("What was checked instead")[0]


@pytest.mark.parametrize(("symptom", "message"), failures())
def test_messages_are_quoted_as_they_are(sources: str, symptom: str, message: str) -> None:
    if message == "-" or OTHERS.search(message):
        return
    quoted = re.findall(r"`([^`]+)`", re.sub(r"\[.*\]", "", message))
    assert quoted, f"{symptom}: no message"
    for quote in quoted:
        for piece in filter(None, (piece.strip(" ()") for piece in quote.split("…"))):
            assert piece in sources, f"{symptom}: nobody says {piece!r}"


def test_commands_parse() -> None:
    seen = set()
    for words in commands():
        name = next((n for n in COMMANDS if words[: len(n.split())] == n.split()), None)
        assert name, f"no command {words[:2]}"
        options = words[len(name.split()) :]
        seen.add(name)
        if options:  # a command alone is only spoken of
            tyro.cli(COMMANDS[name][0], args=_words(options))
    assert seen >= {"preprocess", "pack", "train", "evaluate", "doctor", "plan"}


def test_named_options_exist() -> None:
    """--option in running text, beside the commands, is one of ours, of Ray's or of docker's."""
    from ray.scripts.scripts import start, up

    ours = {f"--{field.replace('_', '-')}" for cls, _ in COMMANDS.values() for field in cls.__dataclass_fields__}
    others = {name for command in (start, up) for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    spoken = set(re.findall(r"`(--[a-z-]+)", TEXT))
    assert spoken - ours - others <= {"--working-dir"}


def test_files_exist() -> None:
    named = re.findall(r"`((?:docs|tests|jobs|requirements)/[\w./*-]+|cluster\.yaml|Dockerfile|\.rayignore)`", TEXT)
    assert len(named) > 8
    for name in named:
        assert list(ROOT.glob(name.rstrip("/") or name)), name
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists()


def test_a_job_carries_only_the_code(tmp_path: Path) -> None:
    """What `ray job submit --working-dir .` uploads, made by Ray itself: of a checkout in which everything lies that must stay behind."""
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    code = ("jobs/train.py", "dfdc_ray/cli.py", "dfdc_ray/train/run.py")
    other = (
        *(".venv/lib/torch.so", ".git/objects/aa/bb", ".ci/run", "out/demo/report.md", "faces.parquet", "clips/a.mp4", "model.safetensors"),
        *("docs/cluster.md", "notebooks/a.ipynb", "requirements/all.lock", "tests/test_x.py", "dfdc_ray/__pycache__/cli.pyc"),
        *("weights.onnx", "a.caffemodel", ".mypy_cache/x.json", ".pytest_cache/x", ".ruff_cache/x"),
    )
    for name in (*code, *other):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    for name in (".gitignore", ".rayignore"):
        (checkout / name).write_text((ROOT / name).read_text())
    create_package(str(checkout), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        carried = {name for name in package.namelist() if not name.endswith("/")}
    assert carried - {".gitignore", ".rayignore"} == set(code)


def test_the_checkout_itself_is_small_to_upload(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size < 2 * 2**20
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = package.namelist()
    assert "jobs/preprocess.py" in names
    assert "dfdc_ray/preprocess/run.py" in names
