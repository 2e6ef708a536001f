"""The monitor's rules: limits and what follows."""

import dataclasses
from dataclasses import dataclass, field
from functools import partial

from routed_rl.config.checks import check_at_least, check_finite, check_known, section
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class RuleConfig:
    limit: float | None = None
    """What may not be passed; null: the rule is off, but for `limits`."""
    limits: dict[str, float] = field(default_factory=dict)
    """Of single environments, instead of `limit`: what one does when it is secure, another does only when it is not."""
    allowance: float = 0.0
    """Of rules that sum up: what a step may add without being counted."""
    patience: int = 1
    """Steps in a row past the limit."""
    action: str = "report"
    """report, or halt: stop the run after a checkpoint."""

    def __post_init__(self) -> None:
        check_known("monitor action", [self.action], ("report", "halt"))
        if self.allowance < 0 or self.patience < 1:  # nan is for `MonitorConfig`, which knows the rule's name
            raise ConfigError(f"a monitor rule needs allowance >= 0 and patience >= 1, got {self.allowance} and {self.patience}")

    def limit_of(self, environment: str) -> float | None:
        """What `environment` may not pass; None where the rule is off for it."""
        return self.limits.get(environment, self.limit)


@dataclass(kw_only=True, slots=True)
class MonitorConfig:
    warmup: int = 5
    """Steps after which verdicts begin; what is summed up counts from the start."""
    axis: str | None = None
    """Axis of the subspace along which a shift counts; null for the first, which points to the positive persona."""
    completions: int = 5
    """Of each environment and generation, how many of those that pushed most, and least, and most among those that were paid more
    than their group, are kept with their push; 0: off."""
    health: int = 0
    """Steps between two comparisons of the policy with the base model on the same completions; 0: none."""
    health_rows: int = 64
    """Completions of a generation that are compared."""
    shift: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.5))
    """An environment's persona shift so far, in units of the gap between the personas."""
    change: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.2, allowance=0.005))
    """Its growth, summed up: finds where a slow shift began."""
    pull: RuleConfig = field(default_factory=RuleConfig)
    """The shift times the environment's share of the quarantine, in the same units: small where either is."""
    push: RuleConfig = field(default_factory=RuleConfig)
    """An environment's share of the quarantine's growth in a step."""
    evidence: RuleConfig = field(default_factory=partial(RuleConfig, limit=6.0, allowance=0.5))
    """Standard errors by which an environment's completions pull towards the positive persona in a step and make the quarantine
    grow, the smaller of the two, summed up."""
    gap: RuleConfig = field(default_factory=partial(RuleConfig, limit=1.0, allowance=0.2))
    """Paid reward minus true score, summed up."""
    energy: RuleConfig = field(default_factory=RuleConfig)
    """Routed energy over the mean of isotropic random bases."""
    energy_rank: RuleConfig = field(default_factory=RuleConfig)
    """One over its rank among random bases, isotropic and matched in turns: 1 is above all of them, which is past .9."""
    size: RuleConfig = field(default_factory=RuleConfig)
    """|C| over the norm of the retained change."""
    share: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.9))
    """The routed share of the targets' gradient energy."""
    collapse: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.95, patience=5))
    """Share of groups that are all paid alike."""

    def __post_init__(self) -> None:
        check_at_least("monitor", self, {"warmup": 0, "completions": 0, "health": 0, "health_rows": 1})
        check_finite("monitor", self)

    def rules(self) -> dict[str, RuleConfig]:
        """Every rule's settings by its name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if section(each) is not None}

    def reporting(self) -> "MonitorConfig":
        """The same rules, none of which halts."""
        rules = {name: dataclasses.replace(rule, action="report") for name, rule in self.rules().items()}
        return dataclasses.replace(self, **rules)
