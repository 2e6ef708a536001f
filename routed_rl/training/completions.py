"""Writes the files of completions. Prompts, texts and rewards are written when completions are scored, and the push of a
completion is added when a step has learned from it. A file is always replaced as a whole, from data that a checkpoint holds too,
so a run that was killed at any moment writes the same file again: nothing is lost and nothing counts twice. A step does not wait
for the disk; a checkpoint does, for the files of all steps before it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from routed_rl.artifacts import replacing, step_of, sync
from routed_rl.ranks import RANKS
from routed_rl.routing import StepRows
from routed_rl.tracking import encouraged

COLUMNS = ("push", "shift")
"""Columns with the push and the shift that a completion's own gradient caused, summed over the steps that learned from the
completion. Both are nan for a completion that `Generation.kept` does not keep."""


@dataclass
class Generation:
    """Completions that were scored together, and from which a later step may still learn. `file`: the name of the file that
    holds them. `environments`: the name of each completion's environment. R is the number of completions."""

    file: str
    first: int
    """The number of the generation's first completion."""
    environments: list[str]
    values_R2: Tensor
    """The values of the two `COLUMNS` of each completion so far, float64; nan if no step has learned from the completion."""
    encouraged: list[bool] | None = None
    """For each completion, whether it was paid more than its group's mean; None in checkpoints that do not record it."""

    def learn(self, rows: StepRows) -> bool:
        """Add to `values_R2` the push and the shift of those `rows` of a step that are completions of this generation. Return
        whether there were such rows."""
        places = rows.completions_R - self.first
        ours = (places >= 0) & (places < len(self.values_R2))
        added = torch.stack([rows.push_R, rows.shift_R], 1)[ours]
        before = self.values_R2[places[ours]]
        self.values_R2[places[ours]] = torch.where(added.isnan(), before, before.nan_to_num() + added)
        return bool(ours.any())

    def kept(self, count: int) -> np.ndarray:
        """Return `values_R2`, whose columns are the push and the shift, with nan for all completions that are not kept.

        Kept are, for each environment, the `count` completions that are highest and the `count` that are lowest in either column,
        and the `count` that have the highest shift among those that were encouraged. The encouraged completions are chosen
        separately, because the completions with the highest shift of all were often discouraged.
        """
        values, environments = self.values_R2.numpy(), np.array(self.environments)
        keep = np.zeros(len(values), dtype=bool)
        for _, ours in pd.DataFrame(values).groupby(environments):
            push, shift = (column.dropna().sort_values(kind="stable").index for _, column in ours.items())
            paid = shift if self.encouraged is None else shift[np.array(self.encouraged)[shift]]
            for order in (push[:count], push[-count:], shift[:count], shift[-count:], paid[-count:]):
                keep[order] = True
        return np.where(keep[:, None], values, np.nan)


class CompletionFiles:
    """Writes `completions/step-<step>-<number>.parquet` for each generation; the names of files of other processes than the first
    end with `-process<rank>`. If `folder` is None, completions are numbered but not stored. `keep`: the argument `count` of
    `Generation.kept`, for choosing the completions whose push and shift are stored; if it is 0, no push or shift is stored."""

    def __init__(self, folder: Path | None, keep: int = 0) -> None:
        self.folder, self.keep = folder, keep
        self.made = 0
        """The number of completions that this process has scored so far, which is the number of the next completion."""
        self._open: list[Generation] = []
        self._tables: dict[str, pd.DataFrame] = {}
        """For the file of each generation that this process has scored and that is still open: the rows without their values."""
        self._waiting: set[Path] = set()
        """The files that may not be on the disk yet, because they were written after the last checkpoint."""
        self._written = (0, 0)
        """The step before which the newest generation was written, and the index of this generation among those of the step,
        because a step may make several."""

    def write(self, rows: list[dict[str, Any]], step: int) -> None:
        """Write the file of a generation, after the generation was scored and before step `step` learns from it. `rows`: one
        mapping for each completion, as `tasks.completion_row` makes it."""
        if self._written[0] != step:
            self._open = self._open[-1:]  # the trainer enters a step with its newest generation only
            self._tables = {each.file: self._tables[each.file] for each in self._open if each.file in self._tables}
        self._written = (step, self._written[1] + 1 if self._written[0] == step else 0)
        process = f"-process{RANKS.rank}" if RANKS.rank else ""
        file = f"step-{step:06d}-{self._written[1]}{process}.parquet"
        nothing = torch.full((len(rows), len(COLUMNS)), torch.nan, dtype=torch.float64)
        environments, tasks, rewards = ([row[key] for row in rows] for key in ("environment", "task", "reward"))
        self._open.append(Generation(file, self.made, environments, nothing, encouraged(environments, tasks, rewards).tolist()))
        self.made += len(rows)
        if self.folder is not None:
            self.folder.mkdir(exist_ok=True)
            self._tables[file] = pd.DataFrame(rows).assign(step=step)
            self._waiting.add(self.folder / file)
            self._replace(self.folder / file, self._tables[file])

    def numbers(self, count: int) -> Tensor:
        """Return the numbers of the last `count` completions, (count,) int64. `StepRows` refers to completions by these
        numbers."""
        return torch.arange(self.made - count, self.made)

    def learned(self, rows: StepRows) -> None:
        """Add the push and the shift of each row of a step to the generation that the row's completion belongs to, and to the
        file of that generation."""
        for generation in self._open:
            if generation.learn(rows):
                self._update(generation)

    def _update(self, generation: Generation) -> None:
        # If somebody removed the file, that is their decision, and training goes on.
        if self.folder is not None and self.keep and (path := self.folder / generation.file).exists():
            columns = dict(zip(COLUMNS, generation.kept(self.keep).T, strict=True))
            table = self._tables.get(generation.file)
            self._replace(path, (pd.read_parquet(path) if table is None else table).assign(**columns))

    def _replace(self, path: Path, table: pd.DataFrame) -> None:
        """Write a file. A file that a checkpoint relies on is on the disk before it is replaced, and so is what replaces it."""
        with replacing(path, durable=path not in self._waiting) as partial:
            table.to_parquet(partial)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, in plain numbers and tensors, after all files that were written are on the disk."""
        for path in filter(Path.exists, self._waiting):
            sync(path)
        if self.folder is not None and self._waiting and self.folder.exists():
            sync(self.folder)
        self._waiting.clear()
        return {"made": self.made, "open": [vars(generation) | {"values_R2": generation.values_R2.clone()}
                                            for generation in self._open[-1:]]}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned. The file of a generation from which steps still learn is written again as it was at the
        checkpoint. ValueError if the stored generations are not whole."""
        self.made, self._tables = state["made"], {}
        self._open = [Generation(**kept) for kept in state["open"]]
        if not all(generation.values_R2.shape == (len(generation.environments), len(COLUMNS)) for generation in self._open):
            raise ValueError("its completions do not fit their environments")
        for generation in self._open:
            self._update(generation)


def forget_after(folder: Path, step: int) -> None:
    """Remove from `folder` the files of completions of steps after `step`, which a resumed run makes again, and files that a
    killed process left half written."""
    for path in [*folder.glob("step-*.parquet"), *folder.glob(".step-*.partial")]:
        if path.name.startswith(".") or step_of(path) > step:
            path.unlink()

