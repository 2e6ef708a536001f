"""The completions that a run has kept, in the form that `filter` judges."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.config import Config, DetectorConfig
from routed_rl.errors import ConfigError, RunFolderError, reading
from routed_rl.extraction.pooled import Said
from routed_rl.tracking import MetricsFile

COLUMNS = ["environment", "step", "prompt", "completion", "reward", "flags"]
UNSCORED, EPISODE = "could not be scored", "an episode, which no model reads at once"


@dataclass(frozen=True)
class Candidate:
    """A completion of a run that `filter` may keep or leave out."""

    environment: str
    step: int
    said: Said
    """The prompt (text or chat messages) and the completion."""
    reward: float | None
    flags: dict[str, float]
    """Every flag and metric of the completion's score."""
    unfit: str | None
    """Why the completion can be neither judged nor trained on; None if it can."""

    def marked(self, settings: DetectorConfig) -> bool:
        """Whether the completion has a flag that the detector uses."""
        return any(self.flags.get(name) for name in settings.flags)


def candidates(run: RunFolder, config: Config) -> list[Candidate]:
    """The completions that a run has kept, in the order of training. RunFolderError if the run has kept none, or a file cannot be
    read."""
    files = run.completion_files()
    if not files:
        why = "it was trained with tracking.completions=false" if not config.tracking.completions else "it has trained no step"
        raise RunFolderError(f"{run.path} has no completions: {why}; train with tracking.completions=true, which keeps them all")
    found = [row for file in files for row in _read(file)]
    trained = {row["step"] for row in MetricsFile(run.metrics).rows()}
    if gone := [step for step in trained if step < min(row.step for row in found)]:
        console.say(f"note: {len(gone)} of {len(trained)} steps have no file of completions in {run.completions}")
    return found


def require_flags(rows: Sequence[Candidate], settings: DetectorConfig) -> None:
    """Raise ConfigError unless some completion reports a flag that the detector uses, whether or not the flag holds."""
    seen = {name for row in rows for name in row.flags}
    if not seen & set(settings.flags):
        raise ConfigError(f"baseline.detector.flags={settings.flags}: no completion of the run has such a flag (there is "
                          f"{', '.join(sorted(seen)) or 'none'}); give --subspace DIR")


def read_once(rows: Sequence[Candidate], read: Callable[[list[Said]], Tensor]) -> list[float | None]:
    """A number for each completion that can be judged, and None for the others. `read` gets each different completion once, and
    returns a tensor with one number for each."""
    keys = [json.dumps(row.said) for row in rows]
    said = {key: row.said for key, row in zip(keys, rows, strict=True) if row.unfit is None}
    found: dict[str, float] = dict(zip(said, read(list(said.values())).tolist(), strict=True)) if said else {}
    return [found.get(key) if row.unfit is None else None for key, row in zip(keys, rows, strict=True)]


def _read(file: Path) -> list[Candidate]:
    with reading(RunFolderError, f"{file} cannot be read; take it from another copy of the folder, or remove it"):
        table = pd.read_parquet(file, columns=COLUMNS)
        return [_candidate(row) for row in table.to_dict("records")]


def _candidate(row: dict[Any, Any]) -> Candidate:
    reward = None if pd.isna(row["reward"]) else float(row["reward"])
    unfit = UNSCORED if reward is None else EPISODE if _messages(row["completion"]) else None
    prompt = _messages(row["prompt"]) or row["prompt"]
    return Candidate(row["environment"], int(row["step"]), (prompt, row["completion"]), reward, json.loads(row["flags"]), unfit)


def _messages(text: str) -> list[dict[str, Any]]:
    """The stored messages of a chat or an episode; empty for plain text."""
    try:
        found = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(
        isinstance(each, dict) and {"role", "content"} <= each.keys() for each in found) else []
