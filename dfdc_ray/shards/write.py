"""Rows to the bytes of a Parquet file: the same rows give the same bytes."""

import functools
import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(row_groups: Sequence[Sequence[dict[str, Any]]], schema: pa.Schema) -> bytes:
    """One row group for each sequence of rows (a video, so that no track is cut); empty ones are left out."""
    sink = io.BytesIO()
    with parquet_writer(sink, schema) as writer:
        for rows in row_groups:
            if rows:
                writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))
    return sink.getvalue()


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer to a file object. Pictures are not compressed again; the small columns are (zstd)."""
    compression = {name: "NONE" if name.startswith("image") else "ZSTD" for name in _leaves(schema)}
    strings = [f.name for f in schema if pa.types.is_string(f.type)]
    return pq.ParquetWriter(
        sink,
        schema,
        compression=compression,
        use_dictionary=strings,
        write_statistics=[*strings, "frame"],
        write_page_checksum=True,  # a picture with a few wrong bytes would otherwise be decoded to another picture
    )


@functools.cache
def _leaves(schema: pa.Schema) -> tuple[str, ...]:
    """Parquet's names of the leaf columns (`image.bytes`, `box.list.element`)."""
    return tuple(column.path for column in pq.ParquetFile(_empty(schema)).schema)


def _empty(schema: pa.Schema) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(schema.empty_table(), file)
    file.seek(0)
    return file
