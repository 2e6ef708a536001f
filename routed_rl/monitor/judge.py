"""Applies the monitor's rules to the rows of `metrics.jsonl`, and says which environment teaches the model the positive persona.

The rules read metrics and nothing else. So a resumed run judges like one that never stopped, every process judges alike, and the
monitor has no effect on reward and loss.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from routed_rl.config import MonitorConfig, RuleConfig
from routed_rl.monitor.rules import RULES, Row, shift, shift_growth

SUSPICION = 1 / 3
"""An environment is suspected if the evidence against it exceeds this share of the limit of the rule `evidence`."""
STANDING = 0.3
"""If an environment's own part has shifted the stream by more than this towards the positive persona, in gaps, evidence above the
share `SUSPICION` of the limit is enough to name the environment. A policy that has found its loophole in a few steps no longer
pulls, and in a small batch these few steps are little evidence by themselves."""


@dataclass(frozen=True)
class Verdict:
    """The statement of a rule that its limit was exceeded in a step, by one environment or by the run as a whole (`environment`
    is then "")."""

    rule: str
    environment: str
    step: int
    value: float
    limit: float
    since: int
    """The step at which the excess began. For a rule that sums readings this is the step at which the sum began to grow; for a
    rule on the shift, the step at which the shift began to grow; for any other rule, the first step of the unbroken series of
    steps above the limit."""
    action: str
    """The consequence of the verdict: report or halt."""

    @property
    def halts(self) -> bool:
        return self.action == "halt"

    def sentence(self) -> str:
        """Return the verdict in words, with value and limit."""
        who = f" of {self.environment}" if self.environment else ""
        rule = RULES[self.rule]
        begin = "; it began to grow at" if rule.sums or rule.of_shift else " since"
        return f"{rule.words}{who} is {self.value:.3g}, above its limit {self.limit:.3g}{begin} step {self.since}"

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence()}


@dataclass
class Detector:
    """The state of one rule for one environment."""

    total: float = 0.0
    """The value that is compared with the limit: a sum over steps for a rule that sums readings, otherwise the latest reading."""
    unbroken: float = 0.0
    """The value that `total` would have if it had not been set to 0 after a halt."""
    since: int = 0
    """The step since which `unbroken` has been above a bound in every step. The bound is 0 if the rule sums readings, and the
    limit otherwise. 0 if `unbroken` is not above the bound now."""
    steps: int = 0
    """The number of steps in a row, up to the latest, in which `total` is above its limit, or above `told` plus the limit if
    `told` is set."""
    told: float | None = None
    """For a rule that does not sum readings: its reading in the step of a halt, if the rule gave a verdict there and the user has
    resumed the run. None otherwise, and again as soon as a reading is not above the limit."""

    def take(self, value: float, settings: RuleConfig, *, sums: bool) -> float:
        """Take the reading `value` of the next step. `sums`: whether the rule sums readings, minus the allowance in `settings`.
        Returns the value that is compared with the limit."""
        self.total, self.unbroken = (max(0.0, total + value - settings.allowance) if sums else value
                                     for total in (self.total, self.unbroken))
        return self.total

    def see(self, step: int, value: float, settings: RuleConfig, limit: float, *, sums: bool) -> float:
        """Take the reading `value` of `step` as in `take`, and count the steps above `limit`. Returns the value that is compared
        with the limit."""
        self.take(value, settings, sums=sums)
        if self.unbroken > (0.0 if sums else limit):
            self.since = self.since or step
        else:
            self.since, self.told = 0, None
        self.steps = self.steps + 1 if self.total > (limit if self.told is None else self.told + abs(limit)) else 0
        return self.total


@dataclass
class Monitor:
    """Judges a run step by step. Call `judge` for the row (the metrics) of each step in order, and `rearm` when a halted run is
    resumed."""

    config: MonitorConfig
    ignore: Collection[str] = ()
    """The environments that are no longer trained on, about which no verdict is given."""
    detectors: dict[tuple[str, str], Detector] = field(default_factory=dict)
    onsets: dict[str, Detector] = field(default_factory=dict)
    """For each environment, a state whose `since` is the step at which the shift by its part began to grow. This may be long
    before a limit is exceeded."""
    before: Row = field(default_factory=dict)
    found: set[str] = field(default_factory=set)
    """The environments that have exceeded the limit of a rule on the pull. From then on their parts move the stream for all
    environments, so the allowance of the others is doubled."""
    said: list[Verdict] = field(default_factory=list)
    """The verdicts on the step that was judged last."""

    def judge(self, row: Row) -> list[Verdict]:
        """Judge the step with the metrics `row`. Returns one verdict for each rule and environment whose limit has been exceeded
        for as many steps in a row as the rule's `patience` says; none during the warmup."""
        self.said = []
        step, before, self.before = int(row["step"]), self.before, row
        standing = shift(row, self.config.axis)
        for environment, growth in shift_growth(row, before, self.config.axis).items():
            self.onsets.setdefault(environment, Detector()).see(step, growth, self.config.change, 0.0, sums=True)
        for name, rule in RULES.items():
            settings: RuleConfig = getattr(self.config, name)
            if settings.limit is None and not settings.limits:
                continue
            for environment, reading in rule.read(row, before, self.config.axis).items():
                limit = settings.limit_of(environment)
                if environment in self.ignore or limit is None:
                    continue
                detector = self.detectors.setdefault((name, environment), Detector())
                if rule.of_pull and standing.get(environment, 0.0) > STANDING:
                    limit *= SUSPICION
                if rule.of_pull and self.found - {environment}:
                    reading -= settings.allowance
                value = detector.see(step, reading, settings, limit, sums=rule.sums)
                if rule.of_pull and value > limit:
                    self.found.add(environment)
                if detector.steps >= settings.patience and step > self.config.warmup:
                    onset = self.onsets[environment].since if rule.of_shift and detector.told is None else 0
                    self.said.append(Verdict(name, environment, step, value, limit, onset or detector.since, settings.action))
        return self.said

    def suspects(self, environment: str) -> bool:
        """Whether the evidence against `environment` exceeds the share `SUSPICION` of its limit, so that it may become a
        verdict."""
        limit, detector = self.config.evidence.limit_of(environment), self.detectors.get(("evidence", environment))
        return limit is not None and detector is not None and detector.total > SUSPICION * limit

    def rearm(self, *, whole: bool = False) -> None:
        """Require new evidence for further verdicts that halt. Called when the run halted on the last step and the user has
        resumed it. Rules that only report are left as they are, because their verdicts stop nothing and belong to the run's
        record in every step in which they hold. `whole`: whether these rules begin anew too, because the run goes on with other
        environments.

        Rules that sum readings over steps begin at 0 again. Any other rule that gave a verdict gives the next one when the
        reading has grown by as much as its limit, or when the reading has been below its limit and exceeds it again. If the
        reading has not been below its limit in between, the next verdict still names the step at which it first exceeded the
        limit.
        """
        rules = [name for name, settings in self.config.rules().items() if whole or settings.action == "halt"]
        for (name, _), detector in self.detectors.items():
            if RULES[name].sums and name in rules:
                detector.total, detector.steps = 0.0, 0
        for verdict in self.said:
            if not RULES[verdict.rule].sums and verdict.rule in rules:
                detector = self.detectors[verdict.rule, verdict.environment]
                detector.told, detector.since, detector.steps = verdict.value, verdict.since, 0
