"""Practice: the deployed model, without the quarantine, rolls out and learns a share of the groups. What it learns from such a
group goes into the weights alone, outside the subspace; the ledger and the quarantine are not changed by it."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import floor
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from routed_rl.config import AUTO, Config, RoutingConfig
from routed_rl.envs import LoadedEnvironment
from routed_rl.errors import ConfigError
from routed_rl.routing import Router
from routed_rl.training.rows import Rows
from routed_rl.training.watch import Watch

Allowed = Callable[[], Collection[str]]
"""Function that returns the environments that may practise in the coming rollouts, the same in every process."""


class Places(Protocol):
    """The methods of `Rows`, or of a table of tasks, that `Practice` uses."""

    @property
    def names(self) -> list[str]: ...

    def place(self, index: int, /) -> tuple[int, int]: ...


class Practice:
    """Chooses which groups practise. All rows of a group practise or none, because the choice depends on the task."""

    def __init__(self, share: float, allowed: Allowed, table: Places) -> None:
        """`share`: the share of an environment's groups that may practise."""
        self.share, self.allowed, self.table = share, allowed, table

    @property
    def active(self) -> bool:
        """Whether any environment may practise now."""
        return self.share > 0 and bool(self.allowed())

    def choose(self, task_ids: Sequence[int]) -> list[bool]:
        """For each row, whether it practises. Of each environment's tasks every `1 / share`-th one does, counted from the
        first."""
        names = self.allowed() if self.share > 0 else ()
        if not names:
            return [False] * len(task_ids)
        chosen, known = [], self.table.names
        for index in task_ids:
            place, count = self.table.place(index)
            due = floor((count + 1) * self.share) > floor(count * self.share)
            chosen.append(due and known[place] in names)
        return chosen


def make_practice(routing: RoutingConfig, table: Places, watch: Watch | None) -> Practice | None:
    """The object that chooses groups for practice, by the settings; None if no group ever practises. With `auto` it asks `watch`;
    without a watch, no environment practises."""
    settings, names = routing.practice, table.names
    if not routing.practises:
        return None
    if settings.environments == AUTO:
        return Practice(settings.share, lambda: watch.trusted(names, settings.probation) if watch else [], table)
    chosen = names if settings.environments == "all" else settings.environments
    return Practice(settings.share, lambda: chosen, table)


def check_practice(config: Config, environments: Sequence[LoadedEnvironment], prompts: int) -> None:
    """ConfigError for practice that is not possible. `environments` are those that are trained on, `prompts` is the number of
    groups in the whole run."""
    settings = config.routing.practice
    if not config.routing.practises:
        return
    names, listed = [loaded.name for loaded in environments], settings.environments
    check_practising(config.routing, names)
    if settings.asked or settings.share != type(settings)().share:
        chosen = names if isinstance(listed, str) else listed
        largest = {loaded.name: max(weight for _, weight in loaded.weights) for loaded in environments}
        for loaded in environments:  # an upper bound if shares change
            groups = prompts * largest[loaded.name] / (sum(largest.values()) or 1.0)
            if loaded.name in chosen and groups * settings.share < 1:
                raise ConfigError(f"routing.practice.share={settings.share} lets no whole group of {loaded.name} practise, "
                                  f"because it has only {groups:.0f} in this run; raise it, or set it to 0")


def check_practising(routing: RoutingConfig, names: Sequence[str]) -> None:
    """ConfigError if the list of environments that practise has one which is not trained on."""
    listed = routing.practice.environments
    if isinstance(listed, (list, tuple)) and (wrong := [name for name in listed if name not in names]):
        raise ConfigError(f"routing.practice.environments has {wrong[0]}, which is not trained on; choose from "
                          f"{', '.join(names)}, or set it to auto or all")


class PractisingMixin:
    """Tells the writers, and an engine, which rows of a rollout practise. It is a base class of the routed trainer's mixin."""

    router: Router | None
    practice: Practice | None
    reward: Rows
    rolling: Tensor | None = None
    """For the rows that are being rolled out and scored, whether each practises, (B,) bool; None if none does."""

    @contextmanager
    def rolling_out(self, practising: Sequence[bool] | Tensor) -> Iterator[None]:
        """Inside this context, forward passes without gradients, and requests to an engine, have rows of which these practise."""
        device = self.accelerator.device  # pyright: ignore[reportAttributeAccessIssue]
        before, mask = self.rolling, torch.as_tensor(practising, dtype=torch.bool, device=device)
        self.rolling = mask if mask.any() else None
        try:
            with self.router.context.practising(self.rolling) if self.router is not None else nullcontext():
                yield
        finally:
            self.rolling = before

    def rows_of(self, start: int, stop: int) -> AbstractContextManager[None]:
        """Inside this context, forward passes have only these rows of the generation."""
        return self.rolling_out(() if self.rolling is None else self.rolling[start:stop])

    def _get_per_token_logps_and_entropies(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
                                           batch_size: int | None = None, **others: Any) -> tuple[Tensor | None, ...]:
        inner = super()._get_per_token_logps_and_entropies  # pyright: ignore[reportAttributeAccessIssue]
        if torch.is_grad_enabled() or self.rolling is None or batch_size is None:
            return inner(model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **others)
        found: list[tuple[Tensor | None, ...]] = []
        for start in range(0, len(input_ids), batch_size):  # as TRL splits them
            rows = slice(start, start + batch_size)
            with self.rows_of(start, start + batch_size):
                found.append(inner(model, input_ids[rows], attention_mask[rows], logits_to_keep, batch_size=batch_size, **others))
        return tuple(None if any(part is None for part in parts) else torch.cat([part for part in parts if part is not None])
                     for parts in zip(*found, strict=True))
