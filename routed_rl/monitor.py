"""The monitor: rules over rows of `metrics.jsonl` that say which environment teaches the model to be someone else.

It reads the metrics and nothing else, so a resumed run judges as one that never stopped, every rank judges alike, and
reward and loss never know of it. One rule is one function of a row and the row before; `RULES` names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from routed_rl.config import MonitorConfig, RuleConfig

Row = Mapping[str, Any]
Readings = dict[str, float]
"""By environment; "" is the run as a whole."""
RUN = ""


@dataclass(frozen=True)
class Verdict:
    """A rule's answer about one environment, or about the run."""

    rule: str
    environment: str
    step: int
    value: float
    limit: float
    since: int
    """The step with which what passed the limit began."""
    action: str
    """report or halt."""

    @property
    def halts(self) -> bool:
        return self.action == "halt"

    def sentence(self) -> str:
        """What it says, in words, with value and limit."""
        who = f" of {self.environment}" if self.environment else ""
        return f"{RULES[self.rule].words}{who} is {self.value:.3g}, past its limit {self.limit:.3g}, since step {self.since}"

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence()}


@dataclass(frozen=True)
class Rule:
    """What a rule reads from a row, and how it is judged."""

    words: str
    read: Callable[[Row, Row, str | None], Readings]
    """(row, the row before, axis) -> readings."""
    sums: bool = False
    """Whether readings are summed up (CUSUM, Page 1954): what passes the allowance a step, never below 0."""


@dataclass
class Detector:
    """What one rule has seen of one environment so far."""

    total: float = 0.0
    since: int = 0
    """First step of the present stretch above 0 (summed up) or above the limit; 0 outside of one."""
    steps: int = 0
    """Length of the present stretch above the limit."""

    def see(self, step: int, value: float, settings: RuleConfig, *, sums: bool) -> float:
        """Take the reading of `step`; returns what is compared with the limit."""
        assert settings.limit is not None
        self.total = max(0.0, self.total + value - settings.allowance) if sums else value
        inside = self.total > 0 if sums else self.total > settings.limit
        self.since = (self.since or step) if inside else 0
        self.steps = self.steps + 1 if self.total > settings.limit else 0
        return self.total


@dataclass
class Monitor:
    """Judges a run step by step. `judge` for each row in order, `rearm` where a halted run goes on."""

    config: MonitorConfig
    ignore: Collection[str] = ()
    """Environments that are no longer trained."""
    detectors: dict[tuple[str, str], Detector] = field(default_factory=dict)
    before: Row = field(default_factory=dict)

    def judge(self, row: Row) -> list[Verdict]:
        """The verdicts on the step of `row`: for each rule and environment the first time, then each time anew."""
        verdicts: list[Verdict] = []
        step, before, self.before = int(row["step"]), self.before, row
        for name, rule in RULES.items():
            settings: RuleConfig = getattr(self.config, name)
            if settings.limit is None:
                continue
            for environment, reading in rule.read(row, before, self.config.axis).items():
                if environment in self.ignore:
                    continue
                detector = self.detectors.setdefault((name, environment), Detector())
                value = detector.see(step, reading, settings, sums=rule.sums)
                if detector.steps >= settings.patience and step > self.config.warmup:
                    verdicts.append(Verdict(name, environment, step, value, settings.limit, detector.since, settings.action))
        return verdicts

    def rearm(self) -> None:
        """Forget what has been summed up: a run that went on after a halt needs new evidence to halt again."""
        self.detectors.clear()


def shift(row: Row, before: Row, axis: str | None) -> Readings:
    """Persona shift so far along the axis, in units of the gap between the personas."""
    found: Readings = {}
    for key, value in row.items():
        words = key.split("/")
        if len(words) == 4 and words[0] == "ledger" and words[2] == "shift" and axis in (None, words[3]) and value is not None:
            found.setdefault(words[1], float(value))
    return found


def shift_growth(row: Row, before: Row, axis: str | None) -> Readings:
    """This step's change of the persona shift."""
    earlier = shift(before, {}, axis)
    return {name: value - earlier.get(name, 0.0) for name, value in shift(row, {}, axis).items()}


def push(row: Row, before: Row, axis: str | None) -> Readings:
    """An environment's share of this step's growth of the quarantine, of all that grew."""
    pushes = {name: max(value, 0.0) for name, value in _of_environments(row, "ledger", "push").items()}
    total = sum(pushes.values())
    return {name: value / total for name, value in pushes.items()} if total > 0 else {}


def gap(row: Row, before: Row, axis: str | None) -> Readings:
    """Paid reward minus true score: what was paid though it was not solved."""
    solved = _of_environments(row, "environment", "solve")
    return {name: paid - solved[name] for name, paid in _of_environments(row, "environment", "reward").items() if name in solved}


def energy(row: Row, before: Row, axis: str | None) -> Readings:
    """Routed energy over the mean of isotropic random bases, on steps that measured it."""
    return {name: value for name, value in _of_environments(row, "control/isotropic", "ratio").items() if name != "all"}


def share(row: Row, before: Row, axis: str | None) -> Readings:
    """The routed part's share of the targets' gradient energy."""
    return _of_run(row, "routing/routed_fraction")


def size(row: Row, before: Row, axis: str | None) -> Readings:
    """The quarantine's norm over that of the retained change."""
    return _of_run(row, "quarantine/relative")


def collapse(row: Row, before: Row, axis: str | None) -> Readings:
    """Share of groups whose completions were all paid alike, so that nothing is learned from them."""
    return _of_run(row, "train/frac_reward_zero_std")


RULES = {
    "shift": Rule("the persona shift", shift),
    "change": Rule("the summed growth of the persona shift", shift_growth, sums=True),
    "push": Rule("the share of the quarantine's growth", push),
    "gap": Rule("the summed gap between paid reward and true score", gap, sums=True),
    "energy": Rule("the routed energy against random bases", energy),
    "size": Rule("the quarantine's size against the retained change", size),
    "share": Rule("the routed share of the gradient", share),
    "collapse": Rule("the share of groups that are all paid alike", collapse),
}


def _of_environments(row: Row, area: str, quantity: str) -> Readings:
    """`area/<environment>/quantity`."""
    return {name: float(value) for key, value in row.items() if value is not None
            and key.startswith(f"{area}/") and key.endswith(f"/{quantity}")
            and "/" not in (name := key[len(area) + 1:-len(quantity) - 1])}


def _of_run(row: Row, key: str) -> Readings:
    return {} if row.get(key) is None else {RUN: float(row[key])}
