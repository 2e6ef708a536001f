"""Is an environment sound? Its gold completions score full, junk does not, tasks follow from the seed, scorers are quick and
do not raise.

A sound environment can still be gamed by a completion that is not junk; nothing here looks for that. One check is one function
of the evidence; its verdict is None if it could not be judged.
"""

import itertools
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from routed_rl.envs.core import Environment, Failure, Score, Task
from routed_rl.envs.host.wire import json_text, pack_task
from routed_rl.envs.scoring import WRONG, accepted, describe, score_many
from routed_rl.errors import ConfigError

MOST_JUNK = 0.05
"""Mean share of the full reward that one kind of junk may earn, over the tasks for which it is not the right answer."""
SLOW_S = 1.0
"""The median number of seconds that scoring one kind of completion may take."""
ENOUGH = 3
"""After this many failures a kind of completion is not tried again: each may be a hang, and the verdict is clear."""
LONG = "lorem ipsum " * 10_000


@dataclass(frozen=True)
class Trial:
    """One completion of one task, scored."""

    kind: str
    task: Task
    completion: str | list[str] | None
    result: Score | Failure
    seconds: float


@dataclass
class Evidence:
    """All that was observed of one environment; `problem` says why there is no more."""

    tasks: list[Task] = field(default_factory=list)
    again: list[Task] = field(default_factory=list)
    gold: dict[int, str | list[str]] = field(default_factory=dict)
    """Gold completions by place in `tasks`; empty if the environment offers none."""
    trials: list[Trial] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class Finding:
    """The result of one check; `sound` is None if it could not be judged."""

    check: str
    sound: bool | None
    detail: str


def gather(make: Callable[[], Environment], samples: int, seed: int = 0, split: str = "train") -> Evidence:
    """Collect the evidence on an environment.

    Makes the tasks of `split` twice, from two environments of the same settings, then scores gold and every kind of junk, one
    completion at a time.
    """
    seen = Evidence()
    try:
        environment = make()
        seen.tasks = list(itertools.islice(environment.tasks(split, seed), samples))
        if not seen.tasks:
            return seen
        seen.again = list(itertools.islice(make().tasks(split, seed), samples))
        next(iter(environment.tasks("eval", seed)))
        if (gold := cast(Any, getattr(environment, "gold", None))) is not None:
            seen.gold = {place: known for place, task in enumerate(seen.tasks) if (known := gold(task)) is not None}
    except ConfigError:
        raise
    except Exception as error:
        seen.problem = "no task for split 'eval'" if isinstance(error, StopIteration) else describe(error)
        return seen
    failed: Counter[str] = Counter()
    for place, task in enumerate(seen.tasks):
        gold_kind = [("gold", seen.gold[place])] if place in seen.gold else []
        for kind, completion in [*gold_kind, *junk(task)]:
            if failed[kind] >= ENOUGH:
                continue
            began = time.perf_counter()
            result = accepted(score_many(environment, [(task, completion)])[0])  # type: ignore[list-item]
            failed[kind] += isinstance(result, Failure)
            seen.trials.append(Trial(kind, task, completion, result, time.perf_counter() - began))
    return seen


def junk(task: Task) -> list[tuple[str, Any]]:
    """Completions of `task` that nobody should be paid for, each with its kind."""
    prompt = task.prompt if isinstance(task.prompt, str) else str(task.prompt[-1].get("content", ""))
    return [("empty", ""), ("0", "0"), ("True", "True"), ("the prompt", prompt), ("very long", LONG),
            ("lone surrogates", "\udcff\ud800"), ("None", None)]


def findings(seen: Evidence) -> list[Finding]:
    """The findings of every check, in order; without tasks only the first check can be judged."""
    judged = [check(seen) if seen.trials or check is makes_tasks else (None, "no tasks") for check in CHECKS.values()]
    return [Finding(name, *verdict) for name, verdict in zip(CHECKS, judged, strict=True)]


Verdict = tuple[bool | None, str]
"""Whether the environment is sound (None if that cannot be judged), and a detail."""


def makes_tasks(seen: Evidence) -> Verdict:
    """The environment has tasks for both splits, and its gold completions can be made."""
    if seen.problem or not seen.tasks:
        return False, seen.problem or "no task"
    return True, f"{len(seen.tasks)} looked at"


def same_seed_same_tasks(seen: Evidence) -> Verdict:
    """Two environments of the same settings make the same tasks from the same seed."""
    here, there = ([json_text(pack_task(task)) for task in tasks] for tasks in (seen.tasks, seen.again))
    differ = [place for place, pair in enumerate(itertools.zip_longest(here, there)) if pair[0] != pair[1]]
    return not differ, f"{len(differ)} of {len(here)} tasks differ under one seed" if differ else "same tasks"


def gold_scores_full(seen: Evidence) -> Verdict:
    """Every gold completion is paid, and its `solve` is 1 where it is known."""
    trials = [trial for trial in seen.trials if trial.kind == "gold"]
    if not trials:
        return None, "offers no gold(task)"
    bad = [trial for trial in trials if not (isinstance(trial.result, Score) and trial.result.reward > 0
                                             and (trial.result.solve is None or trial.result.solve >= 1 - 1e-6))]
    if not bad:
        return True, "scores full"
    shown = repr(bad[0].completion)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return False, f"{len(bad)} of {len(trials)} not full, such as {shown}: {_said(bad[0])}"


def junk_scores_nothing(seen: Evidence) -> Verdict:
    """No kind of junk earns more than `MOST_JUNK` of the full reward; tasks that it happens to answer rightly do not count."""
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
    """No completion that is text makes the scorer fail. None may, since no model writes it."""
    bad = [trial for trial in _failed(seen, wrong=False) if trial.completion is not None]
    return not bad, f"on {', '.join(dict.fromkeys(trial.kind for trial in bad))}: {_said(bad[0])}" if bad else "no"


def is_finite(seen: Evidence) -> Verdict:
    """No score has a number that is nan, infinite, too large or out of its range."""
    bad = _failed(seen, wrong=True)
    return not bad, f"on {bad[0].kind}: {_said(bad[0])}" if bad else "yes"


def is_quick(seen: Evidence) -> Verdict:
    """The median scoring time of each kind of completion is at most `SLOW_S`."""
    times: dict[str, list[float]] = {}
    for trial in seen.trials:
        times.setdefault(trial.kind, []).append(trial.seconds)
    kind, median = max(((kind, statistics.median(values)) for kind, values in times.items()), key=lambda pair: pair[1])
    return median <= SLOW_S, f"{median * 1000:.1f} ms" + (f" on {kind}" if median > SLOW_S else "")


CHECKS = {"tasks": makes_tasks, "seed": same_seed_same_tasks, "gold": gold_scores_full, "junk": junk_scores_nothing,
          "raises": does_not_raise, "finite": is_finite, "time": is_quick}


def is_right(trial: Trial, gold: str) -> bool:
    """Whether a junk completion happens to be the right one: the same words, the same number, or a prompt that ends with it."""
    left, right = (str(text).strip().casefold() for text in (trial.completion, gold))
    numbers = re.findall(r"-?\d+(?:\.\d+)?", left) if trial.kind == "the prompt" else [left]
    return left == right or any(_equal(number, right) for number in numbers[-1:])


def _equal(left: str, right: str) -> bool:
    try:
        return float(left) == float(right)
    except ValueError:
        return False


def unsound(found: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.sound is False]


def _share(trial: Trial, gold: Trial | None) -> float:
    """The share of the full reward that a trial earned, or its `solve` if that is larger; full is 1 if gold's reward is
    unknown."""
    if isinstance(trial.result, Failure):
        return 0.0
    full = gold.result.reward if gold and isinstance(gold.result, Score) and gold.result.reward > 0 else 1.0
    return max(trial.result.reward / full, trial.result.solve or 0.0)


def _failed(seen: Evidence, *, wrong: bool) -> list[Trial]:
    """Trials without a score: those whose score had a `wrong` number, or all others."""
    return [trial for trial in seen.trials
            if isinstance(trial.result, Failure) and trial.result.reason.startswith(WRONG) == wrong]


def _said(trial: Trial) -> str:
    result = trial.result
    if isinstance(result, Failure):
        return result.reason
    return f"reward {result.reward:g}, solve {'unknown' if result.solve is None else format(result.solve, 'g')}"
