"""How an output folder is begun and its data files are written, whichever command makes it."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from dfdc_ray import storage
from dfdc_ray.errors import UserError


def claim(out: str, config: dict[str, Any], *, folders: Iterable[str]) -> None:
    """Take OUT, new or begun with the same OUT/config.json; make these folders in it. UserError names what differs otherwise."""
    storage.make_dirs(out)
    for folder in folders:
        storage.make_dirs(storage.join(out, folder))
    uri = storage.join(out, "config.json")
    if storage.create_once(uri, json_bytes(config)):
        return
    there = json.loads(storage.read_bytes(uri))
    wanted = json.loads(json_bytes(config))  # as it would be written: lists for tuples
    differences = [
        f"  {name}: {there.get(name)!r} there, {wanted.get(name)!r} now"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name)
    ]
    if differences:
        listed = "\n".join(differences)
        raise UserError(f"{out} was begun with another configuration:\n{listed}\nGive the same options and input, or another --out.")


def write_data(out: str, stem: str, data: bytes, *, rows: int) -> dict[str, Any]:
    """Write OUT/<stem>.<start of its SHA-256>.parquet; what a manifest says of it: path, rows, sha256. It never replaces other bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{stem}.{sha256[:16]}.parquet"
    storage.write_bytes(storage.join(out, path), data)
    return {"path": path, "rows": rows, "sha256": sha256}


def data_hash(files: Iterable[dict[str, Any]]) -> str:
    """SHA-256 that identifies the rows of these files and their order."""
    return hashlib.sha256("\n".join(file["sha256"] for file in files).encode()).hexdigest()


def json_bytes(value: Any) -> bytes:
    """The same bytes for the same value."""
    return json.dumps(value, indent=1, sort_keys=True).encode()
