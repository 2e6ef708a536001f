"""The arms of a comparison, and the runs they make. A new arm is one row of `ARMS`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from routed_rl.config import Compose
from routed_rl.errors import ConfigError
from routed_rl.jobs import Job

ARMS: dict[str, list[str]] = {
    "none": ["routing.mode=none"],
    "observe": ["routing.mode=observe"],
    "route": ["routing.mode=route"],
    "control": ["routing.mode=route", "subspace.method=random"],
    "erase": ["routing.mode=erase"],
}
"""Arm -> the settings that make it, after those of the user. What is frozen is the same in every arm."""

UNROUTED, ROUTED, CONTROL = "none", "route", "control"
"""The arms that others are measured against."""


@dataclass(frozen=True)
class Run(Job):
    """One training run of a comparison. Equal `seed`s see the same tasks in every arm."""

    arm: str
    seed: int
    """Counted from 0; the run's own seed is the experiment's plus this."""


def plan_runs(overrides: list[str], arms: list[str], seeds: int, out: Path, compose: Compose) -> list[Run]:
    """Every run of the arms, seed by seed, so that what is there after a while can already be compared."""
    for arm in arms:
        if arm not in ARMS:
            raise ConfigError(f"--arms has {arm}, which is no arm; the arms are {', '.join(ARMS)}")
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    first = compose(overrides).seed
    return [_run(arm, seed, [*overrides, *ARMS[arm]], first, out, compose) for seed in range(seeds)
            for arm in dict.fromkeys(arms)]


def plan_ranks(overrides: list[str], ranks: list[int], seeds: int, out: Path, compose: Compose) -> dict[int, list[Run]]:
    """The routed arm at other ranks; a rank that the arm has anyway is the arm's own runs."""
    routed = [*overrides, *ARMS[ROUTED]]
    config = compose(routed)
    plans = {}
    for rank in dict.fromkeys(ranks):
        if rank < 1:
            raise ConfigError(f"--ranks must be at least 1, got {rank}")
        same = config.subspace.rank == rank
        arm, settings = (ROUTED, routed) if same else (f"{ROUTED}-rank{rank}", [*routed, f"subspace.rank={rank}"])
        plans[rank] = [_run(arm, seed, settings, config.seed, out, compose) for seed in range(seeds)]
    return plans


def _run(arm: str, seed: int, settings: list[str], first: int, out: Path, compose: Compose) -> Run:
    name = f"{arm}-seed{seed}"
    overrides = [*settings, f"seed={first + seed}", f"name={name}"]
    config = compose(overrides)
    # An arm that halted could not be compared.
    config = dataclasses.replace(config, out=str(out / "runs" / name), monitor=config.monitor.reporting())
    return Run(name, config, overrides, arm, seed)
