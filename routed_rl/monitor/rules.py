"""The rules of the monitor. Each rule is one function that reads a value from a row of `metrics.jsonl`; `RULES` lists them
all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Readings = dict[str, float]
"""Maps environments to values; the key "" stands for the run as a whole."""
RUN = ""
Read = Callable[[Row, Row, str | None], Readings]
"""Function that maps (row, the row before, axis) to readings."""


@dataclass(frozen=True)
class Rule:
    """A rule: the function that reads its value from a row, and how that value is judged."""

    words: str
    read: Read
    sums: bool = False
    """Whether readings are summed over steps as a CUSUM (Page, 1954): each reading minus the allowance, never below 0."""
    of_shift: bool = False
    """Whether the rule reads a level of the persona shift. A verdict then names the step at which the shift began to grow."""
    of_pull: bool = False
    """Whether the rule reads a pull. Once another environment has been found, its part changes this pull too, so the allowance is
    doubled from then on."""


def shift(row: Row, axis: str | None) -> Readings:
    """The persona shift of each environment so far along the axis, in units of the gap between the personas."""
    found: Readings = {}
    for key, value in row.items():
        words = key.split("/")
        if len(words) == 4 and words[0] == "ledger" and words[2] == "shift" and axis in (None, words[3]) and _is_number(value):
            found.setdefault(words[1], float(value))
    return found


def shift_growth(row: Row, before: Row, axis: str | None) -> Readings:
    """How much each environment's persona shift has changed in this step."""
    earlier = shift(before, axis)
    return {name: value - earlier.get(name, 0.0) for name, value in shift(row, axis).items()}


def _pull(row: Row, _before: Row, axis: str | None) -> Readings:
    """The persona shift times the share of the quarantine. It is large only if both are."""
    shares = _of_environments(row, "ledger", "share")
    return {name: value * shares[name] for name, value in shift(row, axis).items() if name in shares}


def _push(row: Row, *_: object) -> Readings:
    """The share of each environment in the sum of all positive pushes."""
    pushes = {name: max(value, 0.0) for name, value in _of_environments(row, "ledger", "push").items()}
    total = sum(pushes.values())
    return {name: value / total for name, value in pushes.items()} if total > 0 else {}


def _gap(row: Row, *_: object) -> Readings:
    solved = _of_environments(row, "environment", "solve")
    return {name: paid - solved[name] for name, paid in _of_environments(row, "environment", "reward").items() if name in solved}


def _evidence(row: Row, *_: object) -> Readings:
    return _of_environments(row, "completions", "evidence")


def _energy(row: Row, *_: object) -> Readings:
    """The routed energy divided by its mean over isotropic random bases, at steps that measured it."""
    return {name: value for name, value in _of_environments(row, "control/isotropic", "ratio").items() if name != "all"}


def _energy_rank(row: Row, *_: object) -> Readings:
    """1 / rank of the routed energy among random bases; 1 means that it is above all of them. Isotropic and covariance-matched
    bases take turns, so a patience of 2 requires both."""
    ranks = _of_environments(row, "control/isotropic", "rank") | _of_environments(row, "control/matched", "rank")
    return {name: 1 / value for name, value in ranks.items() if name != "all"}


def _of_run(key: str) -> Read:
    """The function that reads a metric of the run as a whole."""
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


def _of_environments(row: Row, area: str, quantity: str) -> Readings:
    """The metrics `area/<environment>/quantity` of a row, by environment."""
    return {name: float(value) for key, value in row.items() if _is_number(value)
            and key.startswith(f"{area}/") and key.endswith(f"/{quantity}")
            and "/" not in (name := key[len(area) + 1:-len(quantity) - 1])}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
