"""What videos exist: a row for each, from DFDC's parts (folders or zips) and folders in that form. `dfdc-ray index --corpus URI --out FILE`

A corpus is a folder, an s3:// prefix or a zip. In it, up to three folders deep, every folder with videos or a metadata.json is read, and
every zip, and the zips in a zip: so DFDC's root, one part, one zip, a zip of all zips, Kaggle's sample and a plain folder all work.

- A corpus is called NAME when given as NAME=URI, else like its folder. One part and a zip of zips are called like the folder around them,
  so that part 7 alone gives the same ids as the whole.
- video_id is corpus/name. The name is the path below the corpus, a zip counting as the folder it would unpack to. DFDC's own folders
  (dfdc_train_part_N, train_sample_videos) and what is above them do not count: corpus/aaa.mp4, but corpus/test_videos/aaa.mp4.
- family_id is the video_id of the original: the video itself when it is real or has no label.
- group_id is corpus/group:G from a groups.csv beside the videos or at the top of the corpus (it must then name every labelled video); else
  corpus/part:N, by the original's part; else corpus/family:NAME, and subjects may recur between splits, which the counts say.
- Every video that a metadata.json lists has a row; without a file its uri is null. A file that none lists has the label null.
- A video_id found more than once (a part both as folder and as zip) is one row, with the first file by uri.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from dfdc_ray import storage
from dfdc_ray.config import IndexConfig
from dfdc_ray.console import console
from dfdc_ray.corpus.counts import CorpusCounts, Counts, print_counts
from dfdc_ray.corpus.metadata import Listing, parse_groups, parse_metadata
from dfdc_ray.corpus.walk import GROUPS, MAX_DEPTH, METADATA, PART, File, Files, walk
from dfdc_ray.errors import UserError

INDEX = pa.schema(
    [
        ("corpus", pa.string()),
        ("video_id", pa.string()),
        ("uri", pa.string()),  # null: listed, but there is no file
        ("label", pa.string()),  # REAL, FAKE or null
        ("method", pa.string()),
        ("original", pa.string()),  # a video_id, also when the original is absent; null for reals
        ("family_id", pa.string()),
        ("group_id", pa.string()),
        ("part", pa.int32()),
        ("size_bytes", pa.int64()),
    ]
)
VIDEO_EXTENSIONS = (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv")
_SAMPLE = "train_sample_videos"


@dataclass(frozen=True)
class FoundVideo:
    """One video of a corpus. `name`, `original`, `family`: video_ids without the corpus."""

    name: str
    original: str | None
    uri: str | None
    size: int | None
    part: int | None
    listing: Listing | None
    listed_in: str | None
    group: str | None
    grouped_in: str | None
    unlisted: bool

    @property
    def family(self) -> str:
        return self.original or self.name


@dataclass(frozen=True)
class _Corpus:
    """Everything found under one name: all videos, also those of equal name, and the uris of what is none."""

    videos: list[FoundVideo]
    ignored: list[str]


def index(config: IndexConfig) -> None:
    """The `index` command."""
    table, counts = build_index(config.corpus)
    print_counts(counts)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(config.out, sink.getvalue().to_pybytes())
    console.print(f"{config.out}: {table.num_rows} videos", highlight=False, markup=False, soft_wrap=True)


def build_index(corpora: Sequence[str]) -> tuple[pa.Table, Counts]:
    """The videos of one or more corpora (each [NAME=]URI) as a table of schema INDEX, ordered by corpus, part and name, and its counts.

    Corpora of one name are taken together. Raises UserError naming what is wrong in which file: nothing found, malformed tables, labels or
    originals that contradict each other, groups that cut a family, zips that cannot be read in place.
    """
    if not corpora:
        raise UserError("no corpus given: use --corpus URI")
    found: dict[str, _Corpus] = {}
    for given in corpora:
        name, files = _find(given)
        corpus = found.setdefault(name, _Corpus([], []))
        videos, others = _videos(files)
        if not videos:
            raise UserError(
                f"{given}: no videos found. Looked up to {MAX_DEPTH} folders deep for {METADATA}, dfdc_train_part_N, dfdc_train_part_NN.zip"
                f" and files ending in {' '.join(VIDEO_EXTENSIONS)}; there are {len(others)} other files."
            )
        corpus.videos.extend(videos)
        corpus.ignored.extend(others)
    _refuse_twice(found)
    tables, counts = zip(*(tabulate(name, corpus.videos, corpus.ignored) for name, corpus in sorted(found.items())), strict=True)
    return pa.concat_tables(tables), Counts(counts)


def _refuse_twice(found: Mapping[str, _Corpus]) -> None:
    """One file under two names would be two videos, in two groups, on two sides of a split."""
    first: dict[str, str] = {}
    for name, corpus in found.items():
        for uri in filter(None, (video.uri for video in corpus.videos)):
            if first.setdefault(uri, name) != name:
                raise UserError(f"{uri} is in the corpora {first[uri]!r} and {name!r}. Give each file once.")


def _find(given: str) -> tuple[str, Files]:
    match = re.fullmatch(r"(?:([A-Za-z0-9._-]+)=)?(.+)", given, re.DOTALL)
    if match is None:
        raise UserError("an empty corpus was given: use --corpus URI or --corpus NAME=URI")
    files = walk(storage.absolute(match[2]))
    name = match[1] or files.name
    if not name:
        raise UserError(f"{given}: this place has no name. Give one as NAME={given}")
    return name, files


def _videos(found: Files) -> tuple[list[FoundVideo], list[str]]:
    """The videos of one corpus as it was given, and the uris of what is no video."""
    folders: dict[str, dict[str, File]] = {}
    for file in found.files:
        folder, _, name = file.uri.rpartition("/")
        folders.setdefault(folder, {})[name] = file
    top_groups = _read_groups(found.top_groups, "")
    videos: list[FoundVideo] = []
    ignored = list(found.ignored)
    for files in folders.values():
        part, prefix = _place(next(iter(files.values())).path[:-1])
        metadata, own_groups = files.pop(METADATA, None), files.pop(GROUPS, None)
        listings = parse_metadata(metadata.table, metadata.uri) if metadata is not None and metadata.table is not None else {}
        groups = _read_groups(own_groups, prefix) or top_groups
        names = {name for name in files if name.lower().endswith(VIDEO_EXTENSIONS)} | listings.keys()
        ignored.extend(files[name].uri for name in files.keys() - names)
        for name in names:
            there, listing = files.get(name), listings.get(name)
            videos.append(
                FoundVideo(
                    name=prefix + name,
                    original=prefix + listing.original if listing is not None and listing.original is not None else None,
                    uri=there.uri if there is not None else None,
                    size=there.size if there is not None else None,
                    part=part,
                    listing=listing,
                    listed_in=metadata.uri if metadata is not None and listing is not None else None,
                    group=groups.of(prefix + name, listing) if groups is not None else None,
                    grouped_in=groups.uri if groups is not None else None,
                    unlisted=listing is None and (metadata is not None or part is not None),
                )
            )
    return videos, ignored


def _place(folder: tuple[str, ...]) -> tuple[int | None, str]:
    """The part that a folder belongs to, and what of its path goes into the names of its videos."""
    part: int | None = None
    below = folder
    for depth, step in enumerate(folder, 1):
        match = PART.fullmatch(step)
        if match is not None:
            part = int(match[1])
        if match is not None or step == _SAMPLE:
            below = folder[depth:]
    return part, "".join(f"{step}/" for step in below)


@dataclass(frozen=True)
class _Groups:
    """A groups.csv that holds for the videos below `prefix`, which it names without that."""

    uri: str
    groups: dict[str, str]
    prefix: str

    def of(self, name: str, listing: Listing | None) -> str | None:
        own_name = name.removeprefix(self.prefix)
        if listing is not None and own_name not in self.groups:
            raise UserError(f"{self.uri} has no group for {own_name!r}. Name every labelled video in it, or remove the file.")
        return self.groups.get(own_name)


def _read_groups(file: File | None, prefix: str) -> _Groups | None:
    return _Groups(file.uri, parse_groups(file.table, file.uri), prefix) if file is not None and file.table is not None else None


def tabulate(corpus: str, found: Iterable[FoundVideo], ignored: Iterable[str] = ()) -> tuple[pa.Table, CorpusCounts]:
    """The rows of one corpus, of schema INDEX and ordered by part and name, and its counts. UserError where what was found disagrees."""
    videos, duplicates = _unique(found)
    by_name = {video.name: video for video in videos}
    _check_originals(by_name)
    groups = _family_groups(videos, by_name)
    videos.sort(key=lambda video: (video.part is None, video.part, video.name))
    labels = [video.listing.label if video.listing is not None else None for video in videos]
    originals = {video.original for video in videos if video.original is not None}
    columns = {
        "corpus": [corpus] * len(videos),
        "video_id": [f"{corpus}/{video.name}" for video in videos],
        "uri": [video.uri for video in videos],
        "label": labels,
        "method": [video.listing.method if video.listing is not None else None for video in videos],
        "original": [f"{corpus}/{video.original}" if video.original is not None else None for video in videos],
        "family_id": [f"{corpus}/{video.family}" for video in videos],
        "group_id": [f"{corpus}/{groups[video.family]}" for video in videos],
        "part": [video.part for video in videos],
        "size_bytes": [video.size for video in videos],
    }
    counts = CorpusCounts(
        corpus=corpus,
        parts=tuple(sorted({video.part for video in videos if video.part is not None})),
        videos=len(videos),
        real=labels.count("REAL"),
        fake=labels.count("FAKE"),
        unlabelled=labels.count(None),
        families=len({video.family for video in videos}),
        groups=len(set(groups.values())),
        originals_absent=len(originals - {video.name for video in videos if video.uri is not None}),
        fakes_without_original=sum(label == "FAKE" and video.original is None for label, video in zip(labels, videos, strict=True)),
        originals_in_other_part=sum(video.original in by_name and by_name[video.original].part != video.part for video in videos),
        subjects_may_recur=any(video.listing is not None and groups[video.family].startswith("family:") for video in videos),
        files_without_metadata=tuple(video.uri for video in videos if video.unlisted and video.uri is not None),
        metadata_without_files=tuple(f"{corpus}/{video.name}" for video in videos if video.uri is None),
        duplicates=tuple(sorted(duplicates)),
        ignored=tuple(sorted(ignored)),
    )
    return pa.table(columns, schema=INDEX), counts


def _unique(found: Iterable[FoundVideo]) -> tuple[list[FoundVideo], list[str]]:
    """One video for each name, with the first file by uri and what any metadata says of it; and the uris of the other files."""
    by_name: dict[str, list[FoundVideo]] = {}
    for video in found:
        by_name.setdefault(video.name, []).append(video)
    videos: list[FoundVideo] = []
    duplicates: list[str] = []
    for same in by_name.values():
        if len(same) == 1:
            videos.append(same[0])
            continue
        same.sort(key=lambda video: (video.uri is None, video.uri, video.listed_in or ""))
        listed = [video for video in same if video.listing is not None]
        for other in listed[1:]:
            if other.listing != listed[0].listing:
                raise UserError(f"{listed[0].listed_in} and {other.listed_in} say different things of {other.name!r}. Correct one of them.")
        files = [video for video in same if video.uri is not None]
        for file in files:
            if file.size != files[0].size:
                raise UserError(
                    f"{files[0].uri} ({files[0].size} bytes) and {file.uri} ({file.size} bytes) are two videos of one name, {file.name!r}. "
                    "Remove or rename one, or name the corpora (--corpus NAME=URI)."
                )
        told = listed[0] if listed else same[0]
        grouped = next((video for video in same if video.group is not None), same[0])
        videos.append(
            replace(
                same[0],
                original=told.original,
                listing=told.listing,
                listed_in=told.listed_in,
                group=grouped.group,
                grouped_in=grouped.grouped_in,
                unlisted=same[0].unlisted and not listed,
            )
        )
        duplicates.extend(video.uri for video in same[1:] if video.uri is not None)
    return videos, duplicates


def _check_originals(by_name: dict[str, FoundVideo]) -> None:
    for video in by_name.values():
        original = by_name.get(video.original) if video.original is not None else None
        if original is not None and original.listing is not None and original.listing.label != "REAL":
            raise UserError(f"{video.listed_in}: {video.name!r} has the original {original.name!r}, which {original.listed_in} calls FAKE")


def _family_groups(videos: list[FoundVideo], by_name: dict[str, FoundVideo]) -> dict[str, str]:
    """The group of each family: one for all its videos, so that no group ever cuts a family."""
    named: dict[str, FoundVideo] = {}
    parts: dict[str, int] = {}
    for video in videos:
        if video.group is not None and (other := named.setdefault(video.family, video)).group != video.group:
            raise UserError(
                f"{video.grouped_in} puts {other.name!r} in group {other.group!r} and {video.name!r} in {video.group!r}, but they are one"
                f" family ({video.family!r} and its fakes), which must stay together. Give them the same group."
            )
        if video.part is not None:
            parts[video.family] = min(parts.get(video.family, video.part), video.part)
    result = {}
    for family in {video.family for video in videos}:
        original = by_name.get(family)
        part = original.part if original is not None else parts.get(family)
        if family in named:
            result[family] = f"group:{named[family].group}"
        else:
            result[family] = f"part:{part}" if part is not None else f"family:{family}"
    return result
