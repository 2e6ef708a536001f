"""The checks of an environment. Each check is a function from the `Evidence` to a `Verdict`; its docstring says what it
judges."""

import itertools
import re
import statistics

from routed_rl.envs.check.evidence import Evidence, Trial
from routed_rl.envs.core import Score
from routed_rl.envs.faults import Failure
from routed_rl.envs.host.wire import json_text, pack_task

MOST_JUNK = 0.05
"""Largest mean share of the full reward that one kind of junk may earn, over the tasks for which this junk is not the right
answer."""
SLOW_S = 1.0
"""Largest median time, in seconds, that scoring one kind of completion may take."""
Verdict = tuple[bool | None, str] | tuple[bool | None, str, Failure | None]
"""Whether the environment passes the check (None if that cannot be judged), a detail in words, and optionally the `Failure` that
explains the result."""


def makes_tasks(seen: Evidence) -> Verdict:
    """Judge whether the environment has tasks for both splits, and whether its gold completions can be made."""
    if seen.problem or not seen.tasks:
        return False, seen.problem.reason if seen.problem else "no task", seen.problem
    return True, f"{len(seen.tasks)} looked at"


def same_seed_same_tasks(seen: Evidence) -> Verdict:
    """Judge whether two environments of the same settings make the same tasks from the same seed."""
    here, there = ([json_text(pack_task(task)) for task in tasks] for tasks in (seen.tasks, seen.again))
    differ = [place for place, pair in enumerate(itertools.zip_longest(here, there)) if pair[0] != pair[1]]
    return not differ, f"{len(differ)} of {len(here)} tasks differ under one seed" if differ else "same tasks"


def gold_scores_full(seen: Evidence) -> Verdict:
    """Judge whether every gold completion is paid, and has `solve` 1 if `solve` is known."""
    trials = [trial for trial in seen.trials if trial.kind == "gold"]
    if not trials:
        return None, "offers no gold(task)"
    bad = [trial for trial in trials if not (isinstance(trial.result, Score) and trial.result.reward > 0
                                             and (trial.result.solve is None or trial.result.solve >= 1 - 1e-6))]
    if not bad:
        return True, "scores full"
    shown = repr(bad[0].completion)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return False, f"{len(bad)} of {len(trials)} not full, such as {shown}: {_said(bad[0])}", _failure(bad)


def junk_scores_nothing(seen: Evidence) -> Verdict:
    """Judge whether each kind of junk earns at most `MOST_JUNK` of the full reward. Tasks for which the junk happens to be right
    do not count."""
    full = {id(trial.task): trial for trial in seen.trials if trial.kind == "gold"}
    shares: dict[str, list[float]] = {}
    for trial in seen.trials:
        gold = full.get(id(trial.task))
        if trial.kind != "gold" and not (gold and is_right(trial, str(gold.completion))):
            shares.setdefault(trial.kind, []).append(_share(trial, gold))
    means = {kind: statistics.fmean(values) for kind, values in shares.items()}
    paid = {kind: mean for kind, mean in sorted(means.items(), key=lambda item: -item[1]) if mean > MOST_JUNK}
    return not paid, ", ".join(f"{kind} earns {mean:.2f}" for kind, mean in paid.items()) or "earns nothing"


def does_not_raise(seen: Evidence) -> Verdict:
    """Judge whether scoring returns a `Score`, and raises nothing, for every completion that is text. A completion that is None
    may fail, because no model writes one."""
    bad = [trial for trial in _failed(seen, wrong=False) if trial.completion is not None]
    kinds = ", ".join(dict.fromkeys(trial.kind for trial in bad))
    return not bad, f"on {kinds}: {_said(bad[0])}" if bad else "no", _failure(bad)


def is_finite(seen: Evidence) -> Verdict:
    """Judge whether every number of the scores is finite, not too large and in its range."""
    bad = _failed(seen, wrong=True)
    return not bad, f"on {bad[0].kind}: {_said(bad[0])}" if bad else "yes", _failure(bad)


def is_quick(seen: Evidence) -> Verdict:
    """Judge whether the median scoring time of each kind of completion is at most `SLOW_S`."""
    times: dict[str, list[float]] = {}
    for trial in seen.trials:
        times.setdefault(trial.kind, []).append(trial.seconds)
    kind, median = max(((kind, statistics.median(values)) for kind, values in times.items()), key=lambda pair: pair[1])
    return median <= SLOW_S, f"{median * 1000:.1f} ms" + (f" on {kind}" if median > SLOW_S else "")


CHECKS = {"tasks": makes_tasks, "seed": same_seed_same_tasks, "gold": gold_scores_full, "junk": junk_scores_nothing,
          "raises": does_not_raise, "finite": is_finite, "time": is_quick}
def is_right(trial: Trial, gold: str) -> bool:
    """Whether a junk completion happens to be right: it has the words or the number of the gold completion `gold`, or it repeats
    a prompt whose last number is that of the gold completion."""
    left, right = (str(text).strip().casefold() for text in (trial.completion, gold))
    numbers = re.findall(r"-?\d+(?:\.\d+)?", left) if trial.kind == "the prompt" else [left]
    return left == right or any(_equal(number, right) for number in numbers[-1:])


def _equal(left: str, right: str) -> bool:
    try:
        return float(left) == float(right)
    except ValueError:
        return False


def _share(trial: Trial, gold: Trial | None) -> float:
    """The share of the full reward that a trial earned, or its `solve` if that is larger; 0 if scoring failed. The full reward is
    that of the trial `gold`, or 1 if this is unknown or not positive."""
    if isinstance(trial.result, Failure):
        return 0.0
    full = gold.result.reward if gold and isinstance(gold.result, Score) and gold.result.reward > 0 else 1.0
    return max(trial.result.reward / full, trial.result.solve or 0.0)


def _failed(seen: Evidence, *, wrong: bool) -> list[Trial]:
    """The trials whose scoring failed: with `wrong`, because the score had a wrong number; without it, for any other reason."""
    return [trial for trial in seen.trials
            if isinstance(trial.result, Failure) and (trial.result.kind == "wrong number") == wrong]


def _failure(trials: list[Trial]) -> Failure | None:
    """The result of the first of `trials` if it is a `Failure`; otherwise None, also if there are no trials."""
    return trials[0].result if trials and isinstance(trials[0].result, Failure) else None


def _said(trial: Trial) -> str:
    result = trial.result
    if isinstance(result, Failure):
        return result.reason
    return f"reward {result.reward:g}, solve {'unknown' if result.solve is None else format(result.solve, 'g')}"
