"""The notebooks run from top to bottom, in their order, on a tiny generated corpus; their stored outputs (`make notebooks`) are small and
name no machine."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from dfdc_ray.demo.corpus import demo_split

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FAMILIES = 5
SMALL = f"FAMILIES, SPLIT, SIDE, EPOCHS = {FAMILIES}, {demo_split(FAMILIES)!r}, 64, 1"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


def run(path: Path, out: Path) -> list[nbformat.NotebookNode]:
    """The outputs of all cells, after other parameters than the notebook's own."""
    notebook = nbformat.read(path, as_version=4)
    (at,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(f"OUT = {str(out)!r}\n{SMALL}"))
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(outputs: list[nbformat.NotebookNode]) -> str:
    return "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_with_outputs_of_one_run_that_are_small_and_name_no_machine(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 400_000
    assert not [word for word in (str(FOLDER.parent), "/home/", "/tmp/", "/root/", "site-packages") if word in text]
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    if path.stem.startswith("03"):
        assert "report/report.html" in shown(outputs)  # as `evaluate` says now


def test_one_that_needs_another_says_so(tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="is not an output of `dfdc-ray preprocess`"):
        run(FOLDER / "03_train_and_judge.ipynb", tmp_path)


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)  # in this order: they share a folder
def test_runs_from_top_to_bottom(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    outputs = run(path, out)
    said = shown(outputs)
    assert [output for output in outputs if {"image/png", "image/jpeg"} & output.get("data", {}).keys()]
    if path.stem.startswith("02"):
        assert "identical: True" in said
        assert "Nothing to do: all of it is done already." in said
    if path.stem.startswith("03"):
        assert "This says nothing about real fakes" in said
        assert (out / "report" / "report.md").exists()
