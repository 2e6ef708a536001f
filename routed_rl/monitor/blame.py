"""Decides which environments taught the model the positive persona. All places use the same answer: a run's last sentence,
`summary.json`, the report, halts and practice.

It uses the evidence of the whole run (`completions/<env>/evidence`, summed over steps as by the rule `monitor.evidence`) and not
the parts at the last step, because parts drift, and a part that pulled early may have been taken back since.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from routed_rl.config import MonitorConfig, RuleConfig
from routed_rl.monitor.judge import STANDING, SUSPICION, Monitor
from routed_rl.monitor.rules import RULES, Row


@dataclass(frozen=True)
class Blame:
    """The evidence against each environment of a run, in the order of the evidence, the most first."""

    evidence: Mapping[str, float]
    """For each environment, the largest sum of evidence at any step, in standard errors, after the allowance for noise."""
    limits: Mapping[str, float]
    """For each environment, the limit above which its evidence alone is enough to name it."""
    found: Collection[str]
    """Environments whose evidence exceeded its limit, or exceeded a share of it while their own part stood at least `STANDING`
    gaps towards the positive persona."""

    @property
    def named(self) -> list[str]:
        """Environments whose pull towards the positive persona is more than the run's own noise explains."""
        return [name for name in self.evidence if name in self.found]

    @property
    def suspected(self) -> list[str]:
        """Environments that are not named, but against which there was some evidence."""
        return [name for name, found in self.evidence.items() if name not in self.found and found > SUSPICION * self.limits[name]]

    @property
    def margin(self) -> float | None:
        """The smallest evidence against an environment that is named, divided by the largest against one that is not; None if
        none is named or all are."""
        others = [found for name, found in self.evidence.items() if name not in self.named]
        return min(self.evidence[name] for name in self.named) / max(*others, 1.0) if self.named and others else None

    def sentence(self, labels: Mapping[str, str]) -> str:
        """The answer in words, with the evidence behind it; empty if the run measured no evidence."""
        def listed(names: Collection[str]) -> str:
            return " and ".join(f"{labels.get(name, name)} ({self.evidence[name]:.1f})" for name in names)

        if not self.evidence:
            return ""
        if self.named:
            rest = [name for name in self.evidence if name not in self.named][:1]
            return (f"{listed(self.named)} pulled towards the positive persona, by evidence in standard errors"
                    + (f"; the next is {listed(rest)}" if rest else ""))
        if self.suspected:
            takes = min(self.limits[name] for name in self.suspected)
            return (f"it is undecided whether {listed(self.suspected)} pulled towards the positive persona: a name takes "
                    f"{takes:g}, or {SUSPICION * takes:g} while its own part stands {STANDING:g} gaps towards it")
        return "no environment pulled towards the positive persona"

    def record(self) -> dict[str, Any]:
        """The answer as plain JSON, for `summary.json` and `HALTED.json`."""
        return {"named": self.named, "suspected": self.suspected, "margin": self.margin, "evidence": dict(self.evidence)}


def blame(rows: Sequence[Row], config: MonitorConfig, trained: Collection[str] | None = None) -> Blame:
    """Judge the `rows` of a run, all of them or those up to some step. `trained`: the environments that are still trained on;
    others are left out. None: all."""
    off = {name: RuleConfig() for name in config.rules() if name != "evidence"}
    rule = config.evidence
    if rule.limit is None:  # the rule is off, so its default limit is used
        rule = dataclasses.replace(rule, limit=MonitorConfig().evidence.limit)
    known = {name for row in rows for name in RULES["evidence"].read(row, row, None)}
    gone = known - set(known if trained is None else trained)
    monitor, most = Monitor(dataclasses.replace(config, **off, evidence=rule), gone), dict[str, float]()
    for row in rows:
        monitor.judge(row)
        for (_, name), detector in monitor.detectors.items():
            most[name] = max(most.get(name, 0.0), detector.unbroken)
    ordered = dict(sorted(most.items(), key=lambda pair: -pair[1]))
    limits = {name: limit for name in ordered if (limit := rule.limit_of(name)) is not None}
    return Blame(ordered, limits, monitor.found)
