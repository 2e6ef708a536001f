"""Settings of `routed-rl sweep`: which trials are made, and which one is best. They are no part of a trial's own settings."""

from dataclasses import dataclass, field
from typing import Any

from routed_rl.config.checks import check_at_least, check_known
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    metric: str | None = None
    """Name of a metric in metrics.jsonl. A trial ends early if its value of this metric at a step is worse than the median of the
    earlier trials' values at the same step; null: no trial ends early."""
    after_trials: int = 4
    """Number of trials that must be finished before a trial may end early."""
    after_steps: int = 10
    """Number of steps that a trial makes before it may end early."""

    def __post_init__(self) -> None:
        check_at_least("sweep.prune", self, {"after_trials": 1, "after_steps": 0})


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    method: str = "grid"
    """grid: every combination of the listed values is tried; optuna: Optuna chooses each trial from the results of the earlier
    ones."""
    objective: Any = None
    """Figure by which trials are compared: a path in summary.json, such as models.deployed.sums.solve, or a list of paths. null:
    the trials of a grid are shown and none is called the best; optuna needs an objective."""
    direction: Any = "maximize"
    """maximize or minimize the objective; for several objectives a list with one entry each."""
    trials: int = 20
    """For method=optuna: total number of trials, which includes those of earlier calls and those that failed."""
    jobs: int = 2
    """Number of trials that run at the same time."""
    prune: PruneConfig = field(default_factory=PruneConfig)
    """When a trial ends early."""

    def __post_init__(self) -> None:
        check_known("sweep.method", [self.method], ("grid", "optuna"))
        check_at_least("sweep", self, {"trials": 1, "jobs": 1})
        check_known("sweep.direction", self.directions, ("maximize", "minimize"))
        if self.method == "optuna" and not self.objectives:
            raise ConfigError("sweep.method=optuna needs an objective: sweep.objective=models.deployed.NAME.solve, or any other "
                              "path in summary.json")
        if self.objectives and len(self.directions) != len(self.objectives):
            raise ConfigError(f"sweep.objective has {len(self.objectives)} paths and sweep.direction {len(self.directions)}; "
                              "give one direction for each: sweep.direction=[minimize,maximize]")
        if self.prune.metric and (self.method != "optuna" or len(self.objectives) != 1):
            raise ConfigError("sweep.prune.metric needs sweep=optuna and one objective, because with several objectives "
                              "no trial is simply worse")

    @property
    def objectives(self) -> list[str]:
        return [] if self.objective is None else _listed(self.objective)

    @property
    def directions(self) -> list[str]:
        return _listed(self.direction)


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)]
