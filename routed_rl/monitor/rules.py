"""The rules of the monitor. The core of a rule is a function that reads values from a row of `metrics.jsonl` (the metrics of one
step); `RULES` lists all rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from routed_rl.config import LABELS, MonitorConfig, RoutingConfig

Row = Mapping[str, Any]
Readings = dict[str, float]
"""The values that a rule reads in one step, by environment; the key "" stands for the run as a whole."""
RUN = ""
Read = Callable[[Row, Row, str | None], Readings]
"""Function that returns a rule's readings of a step. Its arguments are the row of the step, the row of the step before, and the
named axis along which shifts are read (None: the first)."""


@dataclass(frozen=True)
class Rule:
    """A rule: the function that reads its values from a row, and how they are judged. `words`: what the values are, for
    messages."""

    words: str
    read: Read
    sums: bool = False
    """Whether readings minus the allowance are summed over steps, where the sum never falls below 0: a CUSUM (Page, 1954)."""
    of_shift: bool = False
    """Whether the rule reads the shift so far. A verdict then names the step at which the shift began to grow."""
    of_pull: bool = False
    """Whether the rule reads a pull. Once an environment has exceeded the limit, its part moves the stream for the others too, so
    the allowance of all other environments is doubled from then on."""


def shift(row: Row, axis: str | None) -> Readings:
    """Return the shift of the stream so far by each environment's part, along the axis of this name (None: the first), in
    gaps."""
    found: Readings = {}
    for key, value in row.items():
        words = key.split("/")
        if len(words) == 4 and words[0] == "ledger" and words[2] == "shift" and axis in (None, words[3]) and _is_number(value):
            found.setdefault(words[1], float(value))
    return found


def shift_growth(row: Row, before: Row, axis: str | None) -> Readings:
    """Return how much the shift by each environment's part has changed from the row `before` to this row, in gaps."""
    earlier = shift(before, axis)
    return {name: value - earlier.get(name, 0.0) for name, value in shift(row, axis).items()}


def _pull(row: Row, _before: Row, axis: str | None) -> Readings:
    """Return the shift by each environment's part times the part's share of the quarantine. The product is large only if both
    factors are large."""
    shares = _of_environments(row, "ledger", "share")
    return {name: value * shares[name] for name, value in shift(row, axis).items() if name in shares}


def _push(row: Row, *_: object) -> Readings:
    """Return the share of each environment's push in the sum of all positive pushes."""
    pushes = {name: max(value, 0.0) for name, value in _of_environments(row, "ledger", "push").items()}
    total = sum(pushes.values())
    return {name: value / total for name, value in pushes.items()} if total > 0 else {}


def _gap(row: Row, *_: object) -> Readings:
    solved = _of_environments(row, "environment", "solve")
    return {name: paid - solved[name] for name, paid in _of_environments(row, "environment", "reward").items() if name in solved}


def _evidence(row: Row, *_: object) -> Readings:
    return _of_environments(row, "completions", "evidence")


def _energy(row: Row, *_: object) -> Readings:
    """Return the energy of each environment's gradient inside the subspace, divided by its mean over isotropic random bases, at
    steps that have measured it."""
    return {name: value for name, value in _of_environments(row, "control/isotropic", "ratio").items() if name != "all"}


def _energy_rank(row: Row, *_: object) -> Readings:
    """Return for each environment 1 divided by a rank: that of its gradient's energy inside the subspace among the gradient's
    energies in random bases. The value 1 means that the energy inside the subspace is the highest. Isotropic and
    covariance-matched bases take turns, so with a patience of 2 the limit must be exceeded against both kinds."""
    ranks = _of_environments(row, "control/isotropic", "rank") | _of_environments(row, "control/matched", "rank")
    return {name: 1 / value for name, value in ranks.items() if name != "all"}


def _of_run(key: str) -> Read:
    """Return a function that reads the metric `key` of the run as a whole."""
    return lambda row, *_: {RUN: float(row[key])} if _is_number(row.get(key)) else {}


RULES = {
    "shift": Rule("the persona shift", lambda row, _before, axis: shift(row, axis), of_shift=True),
    "change": Rule("the summed growth of the persona shift", shift_growth, sums=True),
    "pull": Rule("the persona shift times the share of the quarantine", _pull, of_shift=True),
    "push": Rule("the share of the quarantine's growth", _push),
    "evidence": Rule("the summed evidence of a pull towards the positive persona", _evidence, sums=True, of_pull=True),
    "gap": Rule("the summed gap between paid reward and true score", _gap, sums=True),
    "energy": Rule("the routed energy against random bases", _energy),
    "energy_rank": Rule("one over the rank of the routed energy among random bases", _energy_rank),
    "size": Rule("the quarantine's size against the retained change", _of_run("quarantine/relative")),
    "share": Rule("the routed share of the gradient", _of_run("routing/routed_fraction")),
    "collapse": Rule("the share of groups that are all paid alike", _of_run("train/frac_reward_zero_std")),
}


WITHOUT_ROUTING = ("gap", "collapse")
"""Rules that have readings when nothing is routed at a subspace."""
OF_THE_QUARANTINE = ("shift", "change", "pull", "push", "size")
"""Rules that have no readings when the quarantine stays empty."""


def unfed(rule: str, monitor: MonitorConfig, routing: RoutingConfig, steps: int, *, truth: bool = True) -> str:
    """Say why the rule of this name has nothing to read in a run of `steps` steps with these settings, and what to do; "" if it
    has readings. `steps`: 0 or less if their number is not known. `truth`: whether environments may report true scores."""
    if routing.mode in ("none", LABELS) and rule not in WITHOUT_ROUTING:
        others = " and ".join(name for name in WITHOUT_ROUTING if truth or name != "gap")
        return f"with routing.mode={routing.mode}; set routing.mode=route, or let only {others} halt"
    if routing.mode == "erase" and rule in OF_THE_QUARANTINE:
        return "with routing.mode=erase, which keeps the quarantine empty; set routing.mode=route"
    if rule.startswith("energy") and not routing.random_control.every:
        return "with routing.random_control.every=0; set it to 16"
    patience: int = getattr(monitor, rule).patience
    if 0 < steps <= max(monitor.warmup, patience - 1):
        return (f"in {steps} steps with monitor.warmup={monitor.warmup} and monitor.{rule}.patience={patience}; train for more "
                "steps")
    return ""


def never_halting(monitor: MonitorConfig, routing: RoutingConfig, steps: int, *, truth: bool = True) -> list[str]:
    """Return a sentence on each rule that is to halt a run with these settings, but has nothing to read; see `unfed`."""
    return [f"{name} will never halt: it has nothing to read {why}" for name in monitor.halting()
            if (why := unfed(name, monitor, routing, steps, truth=truth))]


def _of_environments(row: Row, area: str, quantity: str) -> Readings:
    """Return the metrics `area/<environment>/quantity` of a row, by environment."""
    return {name: float(value) for key, value in row.items() if _is_number(value)
            and key.startswith(f"{area}/") and key.endswith(f"/{quantity}")
            and "/" not in (name := key[len(area) + 1:-len(quantity) - 1])}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
