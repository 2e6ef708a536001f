"""The rules: what each reads from a row of `metrics.jsonl`. One rule is one function; `RULES` names them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Readings = dict[str, float]
"""By environment; "" is the run as a whole."""
RUN = ""


@dataclass(frozen=True)
class Rule:
    """What a rule reads from a row, and how it is judged."""

    words: str
    read: Callable[[Row, Row, str | None], Readings]
    """(row, the row before, axis) -> readings."""
    sums: bool = False
    """Whether readings are summed up (CUSUM, Page 1954): what passes the allowance a step, never below 0."""
    of_shift: bool = False
    """Whether it is a level that the persona shift rises to: it began where the growth did."""


def shift(row: Row, before: Row, axis: str | None) -> Readings:
    """Persona shift so far along the axis, in units of the gap between the personas."""
    found: Readings = {}
    for key, value in row.items():
        words = key.split("/")
        if len(words) == 4 and words[0] == "ledger" and words[2] == "shift" and axis in (None, words[3]) and _is_number(value):
            found.setdefault(words[1], float(value))
    return found


def shift_growth(row: Row, before: Row, axis: str | None) -> Readings:
    """This step's change of the persona shift."""
    earlier = shift(before, {}, axis)
    return {name: value - earlier.get(name, 0.0) for name, value in shift(row, {}, axis).items()}


def pull(row: Row, before: Row, axis: str | None) -> Readings:
    """The persona shift times the environment's share of the quarantine: large only where both are."""
    shares = _of_environments(row, "ledger", "share")
    return {name: value * shares[name] for name, value in shift(row, {}, axis).items() if name in shares}


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


def energy_rank(row: Row, before: Row, axis: str | None) -> Readings:
    """One over the subspace's rank by routed energy among itself and the random bases: 1 is above all of them.

    The kinds of random bases, isotropic and matched, take turns, so a patience of 2 asks for both.
    """
    ranks = _of_environments(row, "control/isotropic", "rank") | _of_environments(row, "control/matched", "rank")
    return {name: 1 / value for name, value in ranks.items() if name != "all"}


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
    "shift": Rule("the persona shift", shift, of_shift=True),
    "change": Rule("the summed growth of the persona shift", shift_growth, sums=True),
    "pull": Rule("the persona shift times the share of the quarantine", pull, of_shift=True),
    "push": Rule("the share of the quarantine's growth", push),
    "gap": Rule("the summed gap between paid reward and true score", gap, sums=True),
    "energy": Rule("the routed energy against random bases", energy),
    "energy_rank": Rule("one over the rank of the routed energy among random bases", energy_rank),
    "size": Rule("the quarantine's size against the retained change", size),
    "share": Rule("the routed share of the gradient", share),
    "collapse": Rule("the share of groups that are all paid alike", collapse),
}


def _of_environments(row: Row, area: str, quantity: str) -> Readings:
    """`area/<environment>/quantity`."""
    return {name: float(value) for key, value in row.items() if _is_number(value)
            and key.startswith(f"{area}/") and key.endswith(f"/{quantity}")
            and "/" not in (name := key[len(area) + 1:-len(quantity) - 1])}


def _of_run(row: Row, key: str) -> Readings:
    return {RUN: float(row[key])} if _is_number(row.get(key)) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
