"""Settings of the monitor: the limits of each rule, and what happens when they are exceeded."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial

from routed_rl.config.checks import check_at_least, check_finite, check_known, check_types, section
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class RuleConfig:
    limit: float | None = None
    """Largest value that is accepted of the quantity that the rule watches, in the unit of the rule; null: the rule is off,
    except for the environments in `limits`."""
    limits: dict[str, float] = field(default_factory=dict)
    """Limits of single environments, by name. Each replaces `limit` for its environment, because a value that is usual for one
    secure environment may be a warning in another."""
    allowance: float = 0.0
    """For rules that are summed over steps: the amount that is subtracted from each step's value before it is added to the sum,
    which never falls below 0 (the allowance of a CUSUM)."""
    patience: int = 1
    """Number of steps in a row in which the rule's value must be above the limit before the rule gives a verdict."""
    action: str = "report"
    """report: a verdict of this rule is recorded and the run goes on; halt: the run stops after a checkpoint."""

    def __post_init__(self) -> None:
        check_types("a monitor rule", self)
        check_known("monitor action", [self.action], ("report", "halt"))
        if self.allowance < 0 or self.patience < 1:  # nan is for `MonitorConfig`, which knows the rule's name
            raise ConfigError(f"a monitor rule needs allowance >= 0 and patience >= 1, got {self.allowance} and {self.patience}")

    def limit_of(self, environment: str) -> float | None:
        """The limit for `environment`. None if the rule is off for it."""
        return self.limits.get(environment, self.limit)


@dataclass(kw_only=True, slots=True)
class MonitorConfig:
    warmup: int = 5
    """Number of steps at the start of a run in which no rule gives a verdict. Rules that are summed over steps count these steps
    too."""
    axis: str | None = None
    """Axis of the subspace along which shifts are measured; null for the first axis, which points to the positive persona. Layers
    count by how well this axis tells the personas apart."""
    completions: int = 5
    """How many completions of each environment and generation are kept with their push and shift, in each of five rankings:
    highest push, lowest push, highest shift, lowest shift, and highest shift among completions that are paid more than their
    group's mean; 0: none."""
    health: int = 0
    """Number of steps between two comparisons of the policy with the base model, by the activations of both on the same
    completions along `monitor.axis`; 0: no comparison."""
    health_rows: int = 64
    """Largest number of completions on which one comparison of the policy with the base model is made (see `health`)."""
    shift: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.5))
    """Rule on the persona shift that an environment's part has caused so far, in units of the gap between the personas."""
    change: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.2, allowance=0.005))
    """Rule on the growth of an environment's persona shift, summed over steps, in units of the gap between the personas. It finds
    the step at which a slow shift began."""
    pull: RuleConfig = field(default_factory=RuleConfig)
    """Rule on the product of an environment's persona shift so far, in units of the gap between the personas, and its share of
    the quarantine. The product is large only if both are."""
    push: RuleConfig = field(default_factory=RuleConfig)
    """Rule on an environment's share of the sum of all positive pushes in a step, from 0 to 1."""
    evidence: RuleConfig = field(default_factory=partial(RuleConfig, limit=6.0, allowance=0.5))
    """Rule on the evidence against an environment, summed over steps. The evidence of a step is the smaller of two numbers, both
    in standard errors: how far its completions pull towards the positive persona, and how much they make the quarantine grow."""
    gap: RuleConfig = field(default_factory=partial(RuleConfig, limit=1.0, allowance=0.2))
    """Rule on an environment's mean paid reward minus its mean true score, summed over steps, in units of the reward."""
    energy: RuleConfig = field(default_factory=RuleConfig)
    """Rule on an environment's routed energy (the squared norm of its gradient inside the subspace) divided by the mean of its
    energies inside isotropic random bases. Around 1 the subspace catches no more than chance does."""
    energy_rank: RuleConfig = field(default_factory=RuleConfig)
    """Rule on 1 / rank. The rank is the place of an environment's routed energy (the squared norm of its gradient inside the
    subspace) among its energies inside random bases, the largest first. A value of 1 means that the subspace catches more than
    every random basis; a limit of .9 gives a verdict only then. Isotropic and covariance-matched random bases take turns."""
    size: RuleConfig = field(default_factory=RuleConfig)
    """Rule on the norm of the quarantine's coefficients divided by the norm of the retained change, which is the part of the
    model's change that went into its weights."""
    share: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.9))
    """Rule on the share of the squared norm of the targets' gradients that lies inside the subspace and is routed, from 0 to
    1."""
    collapse: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.95, patience=5))
    """Rule on the share of groups whose completions are all paid alike, from 0 to 1."""

    def __post_init__(self) -> None:
        check_types("monitor", self)
        check_at_least("monitor", self, {"warmup": 0, "completions": 0, "health": 0, "health_rows": 1})
        check_finite("monitor", self)

    def rules(self) -> dict[str, RuleConfig]:
        """Maps the name of every rule to its settings."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if section(each) is not None}

    def halting(self) -> list[str]:
        """The names of the rules that halt a run."""
        return [name for name, rule in self.rules().items() if rule.action == "halt"]

    def check_names(self, known: Collection[str], before: "MonitorConfig | None" = None) -> None:
        """Raise ConfigError if a rule has a limit for an environment that is not among `known`, the environments that are trained
        on, because the limit would do nothing. A limit that is also in `before`, the settings with which the run began, is
        accepted, because the run may have dropped the environment since."""
        old = before.rules() if before is not None else {}
        for rule, settings in self.rules().items():
            for name in settings.limits:
                if name not in known and not (rule in old and name in old[rule].limits):
                    raise ConfigError(f"monitor.{rule}.limits has {name}, which is not trained on; choose from "
                                      f"{', '.join(known)}, or leave it out")

    def check_halting(self, before: "MonitorConfig | None" = None) -> None:
        """Raise ConfigError if a rule has the action `halt` and no limit, because it would never halt. A rule that is the same in
        `before`, the settings with which the run began, is accepted."""
        usual, old = MonitorConfig().rules(), before.rules() if before is not None else {}
        for name, rule in self.rules().items():
            if rule.action == "halt" and rule.limit is None and not rule.limits and rule != old.get(name):
                own = usual[name]
                such = ("which `routed-rl calibrate` finds" if own.limit is None else
                        f"such as limit={own.limit:g} and allowance={own.allowance:g}, its defaults")
                raise ConfigError(f"monitor.{name}.action=halt has no limit, so it would never halt; set monitor.{name}.limit, "
                                  f"{such}")

    def only_for(self, environments: Collection[str]) -> "MonitorConfig":
        """A copy without the limits of environments that are not among `environments`."""
        return dataclasses.replace(self, **{rule: dataclasses.replace(settings, limits={
            name: limit for name, limit in settings.limits.items() if name in environments})
            for rule, settings in self.rules().items()})

    def reporting(self) -> "MonitorConfig":
        """A copy in which all rules have the action `report`, so that none halts the run."""
        rules = {name: dataclasses.replace(rule, action="report") for name, rule in self.rules().items()}
        return dataclasses.replace(self, **rules)
