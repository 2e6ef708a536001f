"""Settings of how changes are routed: the mode, the quarantine's optimizer, the ledger's random control, practice, routing by
labels."""

from dataclasses import dataclass, field
from typing import Any

from routed_rl.config.checks import AUTO, check_at_least, check_finite, check_known, check_types
from routed_rl.errors import ConfigError

LABELS = "labels"
"""The mode that routes by labels and has no subspace."""


@dataclass(kw_only=True, slots=True)
class QuarantineConfig:
    pace: str = "evidence"
    """How fast an environment's part of the quarantine learns. evidence: slowly, and at `learning_rate` only while the
    environment's completions pull towards the positive persona; fast: always at `learning_rate`."""
    learning_rate: float = 0.03
    """Step size of the quarantine's optimizer at full pace: the change of a coefficient per update, before the bound
    `max_shift`."""
    max_shift: float | None = 0.64
    """Largest shift of the stream that one step of the quarantine, at all targets together, may cause, in units of the gap
    between the personas; null for no bound."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay per step of the quarantine's first moments (one for each environment), and of its second moment, which all
    environments share."""
    eps: float = 1e-12
    """Number that is added to the root of the second moment in the quarantine's optimizer."""
    sample_tokens: int = 256
    """Number of tokens of a micro-batch, padding not counted, on which the root mean square of a step's shift is measured for the
    bound `max_shift`."""

    def __post_init__(self) -> None:
        check_types("routing.quarantine", self)
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
    """Number of steps between two comparisons of the energy that is routed at the subspace with the energies inside random bases;
    0: no comparison."""
    draws: int = 16
    """Number of random bases in a comparison. One comparison uses isotropic bases, the next one covariance-matched bases, in
    turns."""

    def __post_init__(self) -> None:
        check_types("routing.random_control", self)
        check_at_least("routing.random_control", self, {"every": 0, "draws": 1})


@dataclass(kw_only=True, slots=True)
class PracticeConfig:
    share: float = 0.75
    """In each environment that routing.practice.environments names: the share of the groups that the deployed model, instead of
    the policy, rolls out and learns, from 0 to 1; 0: none."""
    environments: Any = AUTO
    """Environments in which the deployed model practises. auto: those that no verdict of the monitor has named and against which
    there is no evidence; all: all of them; or a list of names."""
    probation: int = 10
    """With environments=auto: number of steps, at the start of a run and after a rollback to other environments, in which no
    environment practises."""

    def __post_init__(self) -> None:
        check_types("routing.practice", self)
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
        """Whether the user has asked for practice explicitly, by naming environments or all of them."""
        return self.share > 0 and self.environments != AUTO and len(self.environments) > 0


@dataclass(kw_only=True, slots=True)
class LabelsConfig:
    rank: int = 16
    """With routing.mode=labels: rank of the quarantine's LoRAs. Each linear module of the layers has one."""
    unit: str = "row"
    """row: a flagged completion is routed to the quarantine as a whole; token: only the tokens in the spans that the completion's
    score marks are routed, or all of its tokens if the score marks no span."""
    method: str = "parameters"
    """parameters: the model's parameters get no gradient from flagged rows or tokens; activations: in addition, the linear
    modules of the layers pass no gradient of flagged rows or tokens on to earlier modules."""
    route: bool = True
    """true: flagged rows or tokens teach the quarantine instead of the model; false: the model and the quarantine both learn from
    every row, which is a control with the same adapters and no routing."""
    strength: float = 1.0
    """Share of the gradient of flagged rows or tokens that the model does not get, from 0 to 1."""
    forget: float = 2.0
    """Factor by which the quarantine's gradient of flagged rows or tokens is multiplied if strength=1. With a smaller `strength`
    the factor is 1 + strength * (forget - 1)."""
    balanced: bool = True
    """Whether the reward of a completion is compared with the mean reward of only those completions in its group that are not
    flagged. A group whose completions are all flagged is compared with the mean of all of them."""
    pace: float = 20.0
    """The quarantine's learning rate divided by that of the weights. The higher this is, the more the quarantine learns before
    the model does."""

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
    """none: TRL's own training; observe: train as usual and project the change on the subspace afterwards; route: the change
    inside the subspace goes to the quarantine; erase: the change inside the subspace is blocked and goes nowhere; labels: route
    by flags of completions, without a subspace."""
    cotangent: str | None = None
    """Which cotangent a target hands on in the backward pass. contained: without its component inside the subspace; open:
    unchanged; null: open with mode=observe, contained with mode=route and mode=erase."""
    quarantine: QuarantineConfig = field(default_factory=QuarantineConfig)
    """The optimizer of the quarantine's coefficients."""
    random_control: RandomControlConfig = field(default_factory=RandomControlConfig)
    """How often, and with how many random bases, the ledger is compared with random bases as a control."""
    practice: PracticeConfig = field(default_factory=PracticeConfig)
    """Groups that the deployed model rolls out and learns, in environments against which the monitor has given no verdict."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """Routing by labels of completions (routing.mode=labels)."""

    def __post_init__(self) -> None:
        check_types("routing", self)
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
        """Whether the deployed model may roll out and learn some groups (practice)."""
        return self.mode == "route" and self.practice.share > 0 and self.practice.environments not in ([], ())
