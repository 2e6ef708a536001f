"""Of `routed-rl sweep`: what is tried, and what is best. A trial's own settings do not have it."""

from dataclasses import dataclass, field
from typing import Any

from routed_rl.config.checks import check_at_least, check_known
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    metric: str | None = None
    """A name in metrics.jsonl: a trial whose value is worse than the earlier ones' median at that step ends; null: none does."""
    after_trials: int = 4
    """Finished trials before the first may be pruned."""
    after_steps: int = 10
    """Steps of a trial before it may be pruned."""

    def __post_init__(self) -> None:
        check_at_least("sweep.prune", self, {"after_trials": 1, "after_steps": 0})


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    method: str = "grid"
    """grid: every combination of the listed values; optuna: trials that follow from earlier ones."""
    objective: Any = None
    """A path in summary.json, such as models.deployed.sums.solve, or a list of them; null: a grid is shown and not judged."""
    direction: Any = "maximize"
    """maximize or minimize; a list for several objectives."""
    trials: int = 20
    """How many there shall be, of optuna; earlier calls' and failed ones count."""
    jobs: int = 2
    """Trials at the same time."""
    prune: PruneConfig = field(default_factory=PruneConfig)

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
            raise ConfigError("sweep.prune.metric needs sweep=optuna and one objective: of several there is no worse half")

    @property
    def objectives(self) -> list[str]:
        return [] if self.objective is None else _listed(self.objective)

    @property
    def directions(self) -> list[str]:
        return _listed(self.direction)


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)]
