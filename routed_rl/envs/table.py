"""The rows of a dataset: a file, a folder that `datasets.save_to_disk` wrote, or a dataset of the Hub by its name. Canaries are
removed, because they are meant for people who search for leaked data, not for models."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routed_rl.artifacts import find_data, json_lines
from routed_rl.canary import KEY, without_canary
from routed_rl.errors import ConfigError, reading

KINDS = (".jsonl", ".json", ".csv", ".parquet")
"""The endings of file names that can be read, in small or capital letters."""
SPLIT = "train"


@dataclass(frozen=True)
class Table:
    """The rows of a dataset, which are read by their index. The rows of a folder or of the Hub stay on disk until they are
    read."""

    rows: Any
    """A list of mappings, or a `datasets.Dataset`. Both can be indexed by the number of a row, and both have a length."""
    columns: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, place: int) -> dict[str, Any]:
        return self.rows[place]

    def column(self, name: str) -> Iterable[Any]:
        """The values of the column `name`, one for each row."""
        return (row[name] for row in self.rows) if isinstance(self.rows, list) else self.rows[name]


def read_table(dataset: str, name: str | None = None, split: str | None = None) -> Table:
    """The rows of `dataset`. `name` is the configuration of a dataset of the Hub. `split` is a split of a saved folder or of a
    dataset of the Hub; None is "train". ConfigError, in one line, if the dataset cannot be read."""
    shown = f"dataset={dataset}"
    try:
        place = find_data(dataset)
    except FileNotFoundError:
        if Path(dataset).suffix.lower() in KINDS:
            raise ConfigError(f"{shown}: no such file; give a path relative to here, or an absolute one") from None
        return _of_library(shown, _from_hub(shown, dataset, name, split or SPLIT))
    if name is not None:
        raise ConfigError(f"{shown} is a file or folder here, which has no dataset_config={name}; leave that out, "
                          "it is for datasets of the Hub")
    if place.is_dir():
        return _of_library(shown, _from_folder(shown, place, split))
    if split is not None:
        raise ConfigError(f"{shown} is a file, which has no split {split}; leave that out: holdout=0.1 holds rows back")
    kind = place.suffix.lower()
    if kind not in KINDS:
        raise ConfigError(f"{shown} is none of {', '.join(KINDS)}; write it as one of these, or as a folder by save_to_disk")
    kinds = " or ".join(dict.fromkeys([kind[1:], KINDS[0][1:]]))
    with reading(ConfigError, f"{shown} cannot be read; give rows as {kinds}, or by save_to_disk"):
        return _of_list(shown, _from_file(shown, place, kind))


def _of_list(shown: str, rows: list[Any]) -> Table:
    """Make a table of `rows`, without canaries. A row that lacks a column has None there, as in `datasets`. ConfigError, which
    begins with `shown`, if an entry is no mapping or there is no row."""
    if wrong := [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise ConfigError(f"{shown}: row {wrong[0]} is {rows[wrong[0] - 1]!r:.60}, no object; write one JSON object for "
                          "each row")
    rows = [without_canary(row) for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        raise ConfigError(f"{shown} has no rows; give at least two")
    return Table([dict.fromkeys(columns) | row for row in rows], columns)


def _of_library(shown: str, found: Any) -> Table:
    if not len(found):
        raise ConfigError(f"{shown} has no rows; give at least two")
    names = [name for name in found.column_names if name != KEY]
    # A folder keeps the format with which it was saved, which may hide columns, or give tensors in place of numbers.
    return Table(found.with_format(None).select_columns(names), names)


def _from_file(shown: str, place: Path, kind: str) -> list[Any]:
    if kind == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(place).to_pylist()
    if kind == ".csv":
        import pandas
        import pyarrow

        table = pandas.read_csv(place)
        # pandas takes the cells that are too many for the names of the rows.
        if len(table) and not isinstance(table.index, pandas.RangeIndex):
            raise ConfigError(f"{shown}: its rows have more cells than its first line; write texts with commas in quotes, and no "
                              "comma at the end of a line")
        # `datasets` also reads an empty cell as None.
        return pyarrow.Table.from_pandas(table, preserve_index=False).to_pylist()
    text = place.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [row for _, row in json_lines(place, shown, ConfigError)]


def _from_folder(shown: str, place: Path, split: str | None) -> Any:
    import datasets

    with reading(ConfigError, f"{shown} is no folder that `datasets.save_to_disk` wrote; give one, or a file"):
        found = datasets.load_from_disk(str(place))
    if isinstance(found, datasets.DatasetDict):
        if (wanted := split or SPLIT) not in found:
            raise ConfigError(f"{shown} has no split {wanted}; it has {', '.join(map(str, found))}: set split=NAME")
        return found[wanted]
    if split not in (None, SPLIT):
        raise ConfigError(f"{shown} is one split, not {split}; leave that out: holdout=0.1 holds rows back")
    return found


def _from_hub(shown: str, dataset: str, name: str | None, split: str) -> Any:
    import datasets

    asked = "".join([shown, f" dataset_config={name}" if name else "", f" split={split}"])
    with reading(ConfigError, f"{asked} is neither here nor could it be had from the Hub; give a file, a folder written by "
                              "save_to_disk, or a name, configuration and split that the Hub has"):
        return datasets.load_dataset(dataset, name, split=split)
