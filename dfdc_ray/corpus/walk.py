"""The files of a corpus: below a folder or an s3:// prefix, in its zips, and in the zips in those."""

import os
import re
from dataclasses import dataclass, field

from dfdc_ray import storage
from dfdc_ray.corpus.zips import is_zip, list_members, read_bytes
from dfdc_ray.errors import UserError

MAX_DEPTH = 3  # folders below the corpus
METADATA, GROUPS = "metadata.json", "groups.csv"
MAX_TABLE_BYTES = 256 << 20  # of a metadata.json or groups.csv; DFDC's have about 300 kB
PART = re.compile(r"dfdc_train_part_([0-9]{1,4})", re.IGNORECASE)
_SKIPPED = ("__MACOSX", "lost+found")  # what systems leave in zips and disks, as they do hidden files


@dataclass(frozen=True)
class File:
    """One file. `path`: its place below the corpus, where a zip counts as the folder it would unpack to; `size` in bytes."""

    path: tuple[str, ...]
    uri: str
    size: int
    table: bytes | None
    """The content of a metadata.json or groups.csv, read while its zip is at hand."""


@dataclass
class Files:
    """What a corpus holds. `ignored`: uris of hidden files, and of folders and zips too deep to look into or seen before."""

    name: str
    """The corpus's own name: that of its folder; of the folder around it for one part, or for a zip that holds zips."""
    files: list[File] = field(default_factory=list)
    top_groups: File | None = None
    """The groups.csv at the top of the corpus; for one part, of the folder around it, so that its groups are those of the whole."""
    ignored: list[str] = field(default_factory=list)


def walk(uri: str) -> Files:
    """The files of the corpus at an absolute uri. Raises UserError when there is no such folder or zip, or a zip in it cannot be read."""
    try:
        top = storage.stat(uri)
    except FileNotFoundError as error:
        raise UserError(f"{uri}: not found. Give a folder, a zip or an s3:// prefix that holds videos.") from error
    if not top.is_dir and not is_zip(uri):
        raise UserError(f"{uri} is neither a folder nor a zip")
    own_name = _stem(top.name)
    is_part = PART.fullmatch(own_name) is not None
    found = Files(own_name)
    path = (own_name,) if is_part else ()
    if top.is_dir:
        _folder(uri, path, found)
        holds_zips = False
    else:
        holds_zips = _zip(uri, path, found)
    found.top_groups = next((file for file in found.files if file.path == (GROUPS,)), None)
    if is_part or holds_zips:
        around = uri.rpartition("/")[0]
        found.name = around.rpartition("/")[2]
        groups = storage.join(around, GROUPS)
        if found.top_groups is None and storage.exists(groups):
            found.top_groups = _file((GROUPS,), groups, storage.stat(groups).size or 0)
    return found


def _folder(uri: str, path: tuple[str, ...], found: Files) -> None:
    """Add the files below a folder. Links to folders come last, so that a folder is known by its own path, and loops end."""
    folders = [(uri, path)]
    links: list[tuple[str, tuple[str, ...]]] = []
    seen: set[str] = set()
    while folders or links:
        uri, below = folders.pop(0) if folders else links.pop(0)
        place = uri if storage.is_s3(uri) else os.path.realpath(uri)
        if len(below) > len(path) + MAX_DEPTH or place in seen:
            found.ignored.append(uri + "/")
            continue
        seen.add(place)
        for entry in storage.list_dir(uri):
            if _is_hidden(entry.name):
                found.ignored.append(entry.uri + ("/" if entry.is_dir else ""))
            elif entry.is_dir:
                is_link = not storage.is_s3(uri) and os.path.islink(entry.uri)
                (links if is_link else folders).append((entry.uri, (*below, entry.name)))
            elif is_zip(entry.name):
                _zip(entry.uri, (*below, _stem(entry.name)), found)
            else:
                found.files.append(_file((*below, entry.name), entry.uri, entry.size or 0))


def _zip(uri: str, path: tuple[str, ...], found: Files, *, depth: int = 1) -> bool:
    """Add the files of a zip; returns whether it holds zips."""
    holds_zips = False
    for member in list_members(uri):
        steps = [step for step in member.name.split("/") if step not in ("", ".")]
        if len(steps) > 1 and steps[0] == _stem(uri.rpartition("/")[2]):
            del steps[0]  # clips.zip with a folder clips/ in it is the same as the folder clips/
        if any(map(_is_hidden, steps)) or (is_zip(member.name) and depth == 2):
            found.ignored.append(member.uri)
        elif is_zip(member.name):
            holds_zips = True
            _zip(member.uri, (*path, *steps[:-1], _stem(steps[-1])), found, depth=2)
        else:
            found.files.append(_file((*path, *steps), member.uri, member.size))
    return holds_zips


def _file(path: tuple[str, ...], uri: str, size: int) -> File:
    if path[-1] not in (METADATA, GROUPS):
        return File(path, uri, size, None)
    if size > MAX_TABLE_BYTES:
        raise UserError(f"{uri} has {size} bytes; at most {MAX_TABLE_BYTES} are expected of this file")
    return File(path, uri, size, read_bytes(uri))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED


def _stem(name: str) -> str:
    return name[: -len(".zip")] if is_zip(name) else name
