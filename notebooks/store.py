"""Run the notebooks in their order and store them with their outputs, paths as seen from this folder: `make notebooks`."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent

for path in sorted(FOLDER.glob("*.ipynb")):
    print(path.name, flush=True)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":  # without warnings of other libraries, and logs
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    path.write_text(nbformat.writes(notebook).replace(str(FOLDER.parent), "..") + "\n")
