"""The footer of a parquet file. It has texts besides the rows: metadata, and the columns' names with their smallest and largest
values. Not covered: the statistics and dictionaries that stand in the pages themselves."""

import base64
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

ARROW = b"ARROW:schema"
"""The key of the metadata that holds the schema once more, as base64."""


def cleaned(schema: pa.Schema, change: Callable[[str], tuple[str, int]]) -> tuple[pa.Schema, int]:
    """Apply `change`, which returns a new text and how many private texts it removed, to the metadata of a table and of its
    columns, and to the columns' names. Returns the new schema and how many private texts were removed. The metadata of fields
    nested within a column is not changed."""
    found = 0

    def clean(data: bytes) -> bytes:
        nonlocal found
        try:
            text, count = change(data.decode())
        except UnicodeDecodeError:
            return data
        found += count
        return text.encode() if count else data

    def clean_all(metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes] | None:
        return metadata and {clean(key): clean(value) for key, value in metadata.items()}

    fields = [pa.field(clean(each.name.encode()).decode(), each.type, each.nullable, clean_all(each.metadata)) for each in schema]
    return pa.schema(fields, clean_all(schema.metadata)), found


def texts(data: bytes) -> Iterator[str]:
    """Yield every text in the footer of a parquet file."""
    file = pq.ParquetFile(pa.BufferReader(data))
    found: list[object] = [file.metadata.created_by]
    for key, value in (file.metadata.metadata or {}).items():
        found += [key, value] if key != ARROW else _of_schema(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value))))
    found += _of_schema(file.schema_arrow)
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if (known := column.statistics) is not None and known.has_min_max:
                found += [known.min, known.max]
    for each in found:
        if isinstance(each, (str, bytes)):
            yield each.decode(errors="replace") if isinstance(each, bytes) else each


def _of_schema(schema: pa.Schema) -> list[object]:
    return [*_pairs(schema.metadata), *(text for field in schema for text in _of_field(field))]


def _of_field(field: pa.Field) -> list[object]:
    inner = [field.type.field(place) for place in range(field.type.num_fields)] if pa.types.is_nested(field.type) else []
    return [field.name, *_pairs(field.metadata), *(text for each in inner for text in _of_field(each))]


def _pairs(metadata: dict[bytes, bytes] | None) -> list[bytes]:
    return [text for pair in (metadata or {}).items() for text in pair]
