"""The notebook is stored without outputs and runs on a small output of preprocess."""

import io
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from dfdc_ray.corpus.index import INDEX
from dfdc_ray.preprocess.receipts import LEDGER
from dfdc_ray.shards.schema import FACES

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "look_at_faces.ipynb"
FRAMES = (10, 20, 30)


def jpeg(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((48, 40, 3), shade, np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def video(family: int, name: str, label: str | None) -> dict[str, Any]:
    ids = {"corpus": "c", "video_id": f"c/{name}", "family_id": f"f{family}", "group_id": f"g{family}"}
    return ids | {"label": label, "part": family, "uri": f"/videos/{name}", "size_bytes": 1_000_000}


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Two families: a real and two fakes, a real and a fake that failed; and an unlabelled video with a face in 2 of 3 frames."""
    good = [video(1, "a.mp4", "REAL"), video(1, "b.mp4", "FAKE"), video(1, "c.mp4", "FAKE"), video(2, "d.mp4", "REAL")]
    bad, unlabelled = video(2, "e.mp4", "FAKE") | {"uri": None}, video(3, "f.mp4", None)
    ledger = [v | {"status": "ok", "frames_wanted": 3, "frames_with_face": 3, "box_source": "original"} for v in good]
    ledger.append(bad | {"status": "missing", "stage": "open", "error": "no such file", "frames_wanted": 0, "frames_with_face": 0})
    ledger.append(unlabelled | {"status": "ok", "frames_wanted": 3, "frames_with_face": 2, "box_source": "self"})
    rows = [
        v | {"frame": frame, "track_id": 0, "core": True, "det_score": 0.9, "crop": [0, 0, 40, 48], "image": {"bytes": jpeg(frame)}}
        for v in [*good, unlabelled]
        for frame in (FRAMES[:2] if v is unlabelled else FRAMES)
    ]
    shard = tmp_path / "faces" / "x.parquet"
    shard.parent.mkdir()
    pq.write_table(pa.Table.from_pylist([*good, bad, unlabelled], schema=INDEX), tmp_path / "index.parquet")
    pq.write_table(pa.Table.from_pylist(ledger, schema=LEDGER), tmp_path / "ledger.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=FACES), shard)
    (shard.parent / "leftover.parquet").write_bytes(b"not named in the manifest")
    (tmp_path / "manifest.json").write_text(json.dumps({"files": [{"path": "faces/x.parquet", "rows": len(rows)}]}))
    return tmp_path


def run(faces: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The outputs of all cells, as Jupyter keeps them."""
    monkeypatch.setenv("DFDC_RAY_FACES", str(faces))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert [cell for cell in cells if cell.outputs or cell.execution_count is not None] == []


def test_shows_counts_coverage_and_faces(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = run(faces, monkeypatch)
    assert outputs[0]["text"].strip() == "1 files, 14 rows"
    tables = [" ".join(re.sub("<[^>]*>", " ", o["data"]["text/html"]).split()) for o in outputs if "text/html" in o.get("data", {})]
    assert len(tables) == 4
    index, fates, coverage, balance = tables
    assert "c FAKE 3 1 2 2 3.0" in index  # corpus, label, videos, without file, families, groups, megabytes
    assert "missing open 1 no such file" in fates
    assert "REAL 2 6.0 6.0 1.0000 2 0" in coverage
    assert "unlabelled 1 3.0 2.0 0.6667 0 1" in coverage
    assert "FAKE 2 6 6 2 40.0 0.9" in balance
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2


def test_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CellExecutionError, match="make demo"):
        run(tmp_path, monkeypatch)
