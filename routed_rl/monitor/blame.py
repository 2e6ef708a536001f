"""Decides which environments taught the model the positive persona. A run's last sentence, `summary.json`, the report and the
messages of halts all give this answer.

The answer rests on the evidence of the whole run (`completions/<env>/evidence`, summed over steps as the rule `monitor.evidence`
does) and not on the environments' parts at the last step, because parts drift, and a part that grew early may have shrunk again.
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
    """The evidence against each environment of a run, and the environments that this evidence names."""

    evidence: Mapping[str, float]
    """For each environment, the largest value of its summed evidence (a CUSUM, after the allowance for noise) at any step, in
    standard errors. The environment with the most evidence is first."""
    limits: Mapping[str, float]
    """For each environment, the limit above which its evidence alone is enough to name the environment."""
    found: Collection[str]
    """The environments whose evidence exceeded the limit, or exceeded the share `SUSPICION` of the limit while the environment's
    own part had shifted the stream by more than `STANDING` gaps towards the positive persona."""

    @property
    def named(self) -> list[str]:
        """The environments whose pull towards the positive persona is more than noise explains, those with the most evidence
        first."""
        return [name for name in self.evidence if name in self.found]

    @property
    def suspected(self) -> list[str]:
        """The environments that are not in `named`, but whose evidence exceeded the fraction `SUSPICION` of the limit of the rule
        `evidence`."""
        return [name for name, found in self.evidence.items() if name not in self.found and found > SUSPICION * self.limits[name]]

    @property
    def margin(self) -> float | None:
        """The smallest evidence against a named environment, divided by the largest evidence against the other environments, or
        by 1 if 1 is larger. None if no environment is named, or if all are."""
        others = [found for name, found in self.evidence.items() if name not in self.named]
        return min(self.evidence[name] for name in self.named) / max(*others, 1.0) if self.named and others else None

    def sentence(self, labels: Mapping[str, str]) -> str:
        """Return in words which environments pulled towards the positive persona, with the evidence; empty if the run measured no
        evidence. `labels` maps environments to the names by which the sentence calls them; any other environment keeps its own
        name."""
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
        """Return this finding as plain JSON, for `summary.json` and `HALTED.json`."""
        return {"named": self.named, "suspected": self.suspected, "margin": self.margin, "evidence": dict(self.evidence)}


def blame(rows: Sequence[Row], config: MonitorConfig, trained: Collection[str] | None = None) -> Blame:
    """Judge a run by `rows`, its metrics from the first step on, up to the last step or an earlier one. `trained`: the
    environments that are still trained on, so that only these can be named; None: all environments."""
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
