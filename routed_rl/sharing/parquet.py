"""Adds a canary column to a parquet file, and restores the old file to the byte.

The file is written again with one more column. If pyarrow wrote the old file, which is so for the files of a run, the pages of
the old columns come out the same. Everything else in the old file, above all its footer, is kept in the new footer. So the column
can be removed without writing pages, whose bytes would depend on the version of the writer. Not covered: encrypted parquet files.
"""

import base64
import io
import itertools
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from routed_rl.canary import KEY, PROJECT

OLD = b"routed_rl.between_the_pages"
"""Key in the new footer: the bytes of the old file before, between and after its column chunks, as base64 in a JSON list."""


def mark(data: bytes, canary: str) -> bytes:
    """Add a last column `KEY` that holds `canary` in every row."""
    file = pq.ParquetFile(pa.BufferReader(data))
    schema = file.schema_arrow.append(pa.field(KEY, pa.string()))
    between = json.dumps([base64.b64encode(piece).decode() for piece in _between(data, file.metadata)])
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema.with_metadata((schema.metadata or {}) | {OLD: between.encode()}),
                          compression=_codecs(file.metadata)) as writer:  # pyright: ignore[reportArgumentType]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            rows = table.append_column(schema.field(KEY), pa.repeat(canary, len(table)))
            writer.write_table(rows, row_group_size=max(len(table), 1))
    return sink.getvalue()


def unmark(data: bytes) -> bytes:
    """Remove the column `KEY`. If `mark` added the column, the result is the input of `mark`, to the byte. If somebody else added
    it, the file is written again from its rows."""
    file = pq.ParquetFile(pa.BufferReader(data))
    if KEY not in file.schema_arrow.names:
        return _without_canary(data, file.schema_arrow.metadata or {})
    if (kept := (file.schema_arrow.metadata or {}).get(OLD)) is None:
        data = written(table_of(data).drop_columns([KEY]))
        return _without_canary(data, file.schema_arrow.metadata or {})
    between = [base64.b64decode(piece) for piece in json.loads(kept)]
    pages = [data[first:last] for first, last in _chunks(file.metadata, but=KEY)]
    return b"".join(itertools.chain.from_iterable(itertools.zip_longest(between, pages, fillvalue=b"")))


def _without_canary(data: bytes, metadata: dict[bytes, bytes]) -> bytes:
    """Return the parquet file `data` without the entries of its footer's `metadata` that hold a canary, and without the entry
    `OLD`. `mark` adds this entry, which stays behind if another program drops the canary column."""
    kept = {key: value for key, value in metadata.items() if key != OLD and PROJECT.encode() not in key + value}
    return data if len(kept) == len(metadata) else written(table_of(data).replace_schema_metadata(kept))


def marks_exactly(data: bytes) -> bool:
    """Whether marking this file and unmarking it again restores it to the byte. That fails if pyarrow writes the pages of the
    file differently."""
    return unmark(mark(data, "?")) == data


def table_of(data: bytes) -> pa.Table:
    """Read the rows of a parquet file."""
    return pq.read_table(pa.BufferReader(data))


def written(table: pa.Table) -> bytes:
    """Write a parquet file with these rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _chunks(metadata: pq.FileMetaData, but: str | None = None) -> Iterator[tuple[int, int]]:
    """Yield where each column chunk begins and ends in the file, by row group and column. The column `but` is left out."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema != but:
                first = column.dictionary_page_offset or column.data_page_offset
                yield first, first + column.total_compressed_size


def _between(data: bytes, metadata: pq.FileMetaData) -> Iterator[bytes]:
    last = 0
    for first, end in _chunks(metadata):
        yield data[last:first]
        last = end
    yield data[last:]


def _codecs(metadata: pq.FileMetaData) -> dict[str, str]:
    """Return each column's compression. pyarrow reads the name UNCOMPRESSED but writes the name NONE."""
    groups = [metadata.row_group(0)] if metadata.num_row_groups else []
    columns = (column for group in groups for column in map(group.column, range(group.num_columns)))
    return {column.path_in_schema: column.compression.replace("UNCOMPRESSED", "NONE") for column in columns} | {KEY: "SNAPPY"}
