"""How changes are routed: the quarantine's step, the ledger's random control, the mode."""

from dataclasses import dataclass, field
from typing import Any

from routed_rl.config.checks import AUTO, check_at_least, check_finite, check_known
from routed_rl.errors import ConfigError

LABELS = "labels"
"""The mode that routes by labels, and has no subspace."""


@dataclass(kw_only=True, slots=True)
class QuarantineConfig:
    pace: str = "evidence"
    """evidence: a part is slow until its environment's completions pull towards the positive persona, then has `learning_rate`
    for as long as they do; fast: `learning_rate` always."""
    learning_rate: float = 0.03
    """Raw step of the quarantine's optimizer at full pace, before the bound; coefficient per update."""
    max_shift: float | None = 0.64
    """Bound on one step, all targets together, in units of the gap between the personas; null for the raw rate alone."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first moments and of the one second moment, per step."""
    eps: float = 1e-12
    """Added to the root of the second moment."""
    sample_tokens: int = 256
    """Real tokens per micro-batch over which the bound's root mean square is taken."""

    def __post_init__(self) -> None:
        check_known("routing.quarantine.pace", [self.pace], ("evidence", "fast"))
        if len(self.betas) != 2:
            raise ConfigError(f"routing.quarantine.betas takes two numbers, got {self.betas}")
        self.betas = (float(self.betas[0]), float(self.betas[1]))
        check_finite("routing.quarantine", self)
        check_at_least("routing.quarantine", self, {"learning_rate": 0, "eps": 0, "sample_tokens": 1})
        if self.max_shift is not None and self.max_shift <= 0:
            raise ConfigError(f"routing.quarantine.max_shift must be > 0 or null, got {self.max_shift}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"routing.quarantine.betas must lie in [0, 1), got {self.betas}")


@dataclass(kw_only=True, slots=True)
class RandomControlConfig:
    every: int = 16
    """Steps between two measurements of the ledger against random bases; 0 for never."""
    draws: int = 16
    """Random bases per measurement; isotropic and covariance-matched draws take turns."""

    def __post_init__(self) -> None:
        check_at_least("routing.random_control", self, {"every": 0, "draws": 1})


@dataclass(kw_only=True, slots=True)
class PracticeConfig:
    share: float = 0.75
    """Share of the groups of an environment that the deployed model rolls out and learns, where it may; 0: none."""
    environments: Any = AUTO
    """auto: environments at which the monitor does not point; all; or a list of names."""
    probation: int = 10
    """With auto: first steps of the run, and of other environments after a rollback, in which no environment practises."""

    def __post_init__(self) -> None:
        check_at_least("routing.practice", self, {"share": 0, "probation": 0})
        if self.share > 1:
            raise ConfigError(f"routing.practice.share must lie in [0, 1], got {self.share}; 0.5 is every second group")
        if isinstance(self.environments, str):
            if self.environments not in (AUTO, "all"):
                raise ConfigError(f"routing.practice.environments={self.environments} is not known; choose from auto, all, or a "
                                  f"list of names, such as [{self.environments}]")
        elif not (isinstance(self.environments, (list, tuple)) and all(isinstance(name, str) for name in self.environments)):
            raise ConfigError(f"routing.practice.environments must be auto, all, or a list of names, got {self.environments!r}")

    @property
    def asked(self) -> bool:
        """Whether somebody asked for practice, beyond what is the default."""
        return self.share > 0 and self.environments != AUTO and len(self.environments) > 0


@dataclass(kw_only=True, slots=True)
class LabelsConfig:
    rank: int = 16
    """Of the quarantine's adapters, one on each linear module of the layers."""
    unit: str = "row"
    """row: whole completions are flagged; token: the spans of a completion that its score marks, where it marks any."""
    method: str = "parameters"
    """parameters: the model's parameters get no gradient from what is flagged; activations: the backward edges of flagged rows
    through the layers' linear modules are cut as well."""
    route: bool = True
    """false: the model and the quarantine learn from every row, a control: the same adapters without routing."""
    strength: float = 1.0
    """Share of the gradient of what is flagged that the model does not get."""
    forget: float = 2.0
    """How much of it the quarantine gets, at strength 1."""
    balanced: bool = True
    """Rewards are compared with the mean of the rows of their group that are not flagged, where there are some."""
    pace: float = 20.0
    """The quarantine's learning rate over the weights': the faster, the more it takes up before the model does."""

    def __post_init__(self) -> None:
        check_known("routing.labels.unit", [self.unit], ("row", "token"))
        check_known("routing.labels.method", [self.method], ("parameters", "activations"))
        check_finite("routing.labels", self)
        check_at_least("routing.labels", self, {"rank": 1, "strength": 0, "forget": 0, "pace": 0})
        if self.strength > 1:
            raise ConfigError(f"routing.labels.strength must lie in [0, 1], got {self.strength}")


@dataclass(kw_only=True, slots=True)
class RoutingConfig:
    mode: str = "route"
    """none, observe, route, erase, or labels."""
    cotangent: str | None = None
    """contained or open; null for the mode's own."""
    quarantine: QuarantineConfig = field(default_factory=QuarantineConfig)
    random_control: RandomControlConfig = field(default_factory=RandomControlConfig)
    practice: PracticeConfig = field(default_factory=PracticeConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)

    def __post_init__(self) -> None:
        check_known("routing.mode", [self.mode], ("none", "observe", "route", "erase", LABELS))
        if self.cotangent is not None:
            check_known("routing.cotangent", [self.cotangent], ("contained", "open"))
        if self.practice.asked and self.mode != "route":
            raise ConfigError(f"routing.practice.environments={self.practice.environments} needs routing.mode=route: in mode "
                              f"{self.mode} there is no quarantine to leave out of a rollout; set routing.practice.share=0")

    @property
    def by_subspace(self) -> bool:
        """Whether changes are split at a subspace."""
        return self.mode not in ("none", LABELS)

    @property
    def practises(self) -> bool:
        """Whether the deployed model may get groups of its own."""
        return self.mode == "route" and self.practice.share > 0 and self.practice.environments not in ([], ())
