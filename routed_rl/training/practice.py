"""Practice: the deployed model, which has no quarantine, rolls out and learns a share of the groups. A group that practises
changes only the model's weights, outside the subspace. It changes neither the ledger nor the quarantine."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import floor
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from routed_rl.config import AUTO, Config, MonitorConfig, RoutingConfig
from routed_rl.envs import LoadedEnvironment
from routed_rl.errors import ConfigError
from routed_rl.routing import Router
from routed_rl.training.rows import Rows
from routed_rl.training.watch import Watch

UNLIMITED = "none: auto trusts nobody without a limit on monitor.evidence"
Allowed = Callable[[], Collection[str]]
"""Function that returns the names of the environments that may practise in the coming rollouts. It must return the same names in
every process."""


class Places(Protocol):
    """The methods of `Rows` and of `TaskTable` that `Practice` uses."""

    @property
    def names(self) -> list[str]: ...

    def place(self, index: int, /) -> tuple[int, int]: ...


class Practice:
    """Chooses which groups practise. All rows of a group practise or none, because the choice depends on the task."""

    def __init__(self, share: float, allowed: Allowed, table: Places) -> None:
        """`share`: the share of groups that practise, in an environment that may practise. `allowed`: returns the names of those
        environments. `table`: knows the environment of each task."""
        self.share, self.allowed, self.table = share, allowed, table

    @property
    def active(self) -> bool:
        """Whether any environment may practise now."""
        return self.share > 0 and bool(self.allowed())

    def choose(self, task_ids: Sequence[int]) -> list[bool]:
        """Return, for each row, whether it practises. `task_ids`: the id of each row's task. In an environment that may practise,
        every `1 / share`-th task is chosen, counted from the environment's first task."""
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
    """Make the object that chooses groups for practice; None if the settings let no group practise. With
    `routing.practice.environments=auto` the monitor (`watch`) says which environments may practise. In this case no environment
    may practise if `watch` is None."""
    settings, names = routing.practice, table.names
    if not routing.practises:
        return None
    if settings.environments == AUTO:
        return Practice(settings.share, lambda: watch.trusted(names, settings.probation) if watch else [], table)
    chosen = names if settings.environments == "all" else settings.environments
    return Practice(settings.share, lambda: chosen, table)


def check_practice(config: Config, environments: Sequence[LoadedEnvironment], prompts: int) -> None:
    """ConfigError if the settings of practice cannot be followed: an environment that may practise is not trained on, or has so
    few groups that not one of them would practise. `environments`: the environments that are trained on. `prompts`: the number of
    groups in the whole run."""
    settings = config.routing.practice
    if not config.routing.practises:
        return
    check_practising(config.routing, [loaded.name for loaded in environments])
    if settings.asked or settings.share != type(settings)().share:
        for name, groups in too_few(config.routing, groups_of(environments, prompts)).items():
            raise ConfigError(f"routing.practice.share={settings.share} lets no whole group of {name} practise, "
                              f"because it has only {groups:.0f} in this run; raise it, or set it to 0")


def groups_of(environments: Sequence[LoadedEnvironment], prompts: int) -> dict[str, float]:
    """Return how many of a run's groups, `prompts` in all, belong to each environment; at most so many if shares change."""
    largest = {loaded.name: max(weight for _, weight in loaded.weights) for loaded in environments}
    return {name: prompts * weight / (sum(largest.values()) or 1.0) for name, weight in largest.items()}


def too_few(routing: RoutingConfig, groups: Mapping[str, float]) -> dict[str, float]:
    """Return those of `groups`, the number of groups of each environment in a run, of which not one would practise although the
    settings let the environment practise."""
    settings = routing.practice
    chosen = groups if isinstance(settings.environments, str) else settings.environments
    return {name: count for name, count in groups.items() if name in chosen and count * settings.share < 1}


def idle(routing: RoutingConfig, last: int, groups: Mapping[str, float]) -> str:
    """Say in a sentence which environments practise in no step of a run, because the run is too small; "" if the settings let
    none practise, or if the run is large enough. `last`: the step after which the run makes its last completions. `groups`: the
    number of groups of each environment."""
    settings = routing.practice
    if not routing.practises:
        return ""
    if settings.environments == AUTO and last < settings.probation:
        return (f"none in this run, whose completions are all made in its first {settings.probation} steps "
                "(routing.practice.probation)")
    if few := too_few(routing, groups):
        counted = ", ".join(f"{name} ({count:.0f})" for name, count in few.items())
        return f"none of {counted}, with too few groups in this run for routing.practice.share={settings.share:g}"
    return ""


def untrusted(routing: RoutingConfig, monitor: MonitorConfig | None, names: Collection[str]) -> str:
    """Say in a sentence which of the environments `names` never practise with `routing.practice.environments=auto`, because the
    settings of the monitor (None: there is no monitor) do not let it trust them; "" if there are none."""
    if not routing.practises or routing.practice.environments != AUTO:
        return ""
    if monitor is None:
        return ("none without a monitor, which says who may practise with routing.practice.environments=auto; give "
                "monitor=MonitorConfig(), or name the environments")
    without = [name for name in names if monitor.evidence.limit_of(name) is None]
    if len(without) == len(names):
        return UNLIMITED
    return f"none of {', '.join(without)}, for which monitor.evidence has no limit" if without else ""


def check_practising(routing: RoutingConfig, names: Sequence[str]) -> None:
    """ConfigError if `routing.practice.environments` lists an environment that is not among `names`, the environments that are
    trained on."""
    listed = routing.practice.environments
    if isinstance(listed, (list, tuple)) and (wrong := [name for name in listed if name not in names]):
        raise ConfigError(f"routing.practice.environments has {wrong[0]}, which is not trained on; choose from "
                          f"{', '.join(names)}, or set it to auto or all")


class PractisingMixin:
    """Tells the routed writers, and an engine, which rows of a rollout practise. It is a base class of `RoutedTrainerMixin`."""

    router: Router | None
    practice: Practice | None
    reward: Rows
    rolling: Tensor | None = None
    """Whether each of the rows that are being rolled out practises, (B,) bool; None if no row does."""

    @contextmanager
    def rolling_out(self, practising: Sequence[bool] | Tensor) -> Iterator[None]:
        """Inside this context, the rows at which `practising` is True practise, in forward passes without gradients and in
        requests to an engine. An empty `practising`: no row practises."""
        device = self.accelerator.device  # pyright: ignore[reportAttributeAccessIssue]
        before, mask = self.rolling, torch.as_tensor(practising, dtype=torch.bool, device=device)
        self.rolling = mask if mask.any() else None
        try:
            with self.router.context.practising(self.rolling) if self.router is not None else nullcontext():
                yield
        finally:
            self.rolling = before

    def rows_of(self, start: int, stop: int) -> AbstractContextManager[None]:
        """Context for forward passes that have only the rows `start` to `stop` (exclusive) of the generation. The part of
        `rolling` for these rows says which of them practise."""
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
