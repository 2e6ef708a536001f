"""Measurements that are repeated. Each is kept as one line of JSON, so that a stopped benchmark goes on where it was."""

from __future__ import annotations

import hashlib
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routed_rl.artifacts import write_text

Found = dict[str, dict[str, float]]
"""arm -> quantity -> value, of one measurement."""
ROOT = Path(__file__).resolve().parent.parent.parent


class Lines:
    """The measurements so far, in a file of JSON lines whose first line says of what they are: the code and the settings"""

    def __init__(self, file: Path | None, about: dict[str, Any]) -> None:
        """`file`: None keeps nothing. ValueError for a file that says something else."""
        self.file, self.rows = file, list[dict[str, Any]]()
        if file is not None and file.exists():
            head, *lines = (json.loads(line) for line in file.read_text().splitlines())
            if other := [key for key in about if head.get(key) != about[key]]:
                raise ValueError(f"{file} has measurements with {other[0]}={head.get(other[0])}, and this is {about[other[0]]}; "
                                 "remove it, or name another file")
            self.rows = lines
        elif file is not None:
            write_text(file, json.dumps(about) + "\n")

    def of(self, row: str) -> list[Found]:
        return [line["found"] for line in self.rows if line["row"] == row]

    def add(self, row: str, found: Found) -> None:
        self.rows.append({"row": row, "found": found})
        if self.file is not None:
            write_text(self.file, self.file.read_text() + json.dumps(self.rows[-1]) + "\n")


def code() -> str:
    """A digest of what is measured: every Python file of the package, and those of the benchmarks."""
    files = sorted([*(ROOT / "routed_rl").rglob("*.py"), *Path(__file__).parent.glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


@dataclass(frozen=True)
class Spread:
    """The median of some values, and their quartiles."""

    low: float
    median: float
    high: float
    count: int

    @staticmethod
    def of(values: list[float]) -> Spread:
        if len(values) < 2:
            return Spread(values[0], values[0], values[0], len(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(low, median, high, len(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratios(found: list[Found], arm: str, base: str, quantity: str) -> list[float]:
    """One ratio of an arm to the base for each measurement that has both."""
    return [each[arm][quantity] / each[base][quantity] for each in found
            if quantity in each.get(arm, {}) and each.get(base, {}).get(quantity)]
