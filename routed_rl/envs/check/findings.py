"""Turns the verdicts of the checks into findings for people, each with the line of the plug-in to look at and advice what to
write there."""

from collections.abc import Iterable
from dataclasses import dataclass

from routed_rl.envs.check.checks import CHECKS, Verdict, makes_tasks
from routed_rl.envs.check.evidence import Evidence
from routed_rl.envs.core import Score

REMEDIES = {
    "tasks": "let tasks(split, seed) yield some for 'train' and for 'eval'",
    "seed": 'draw from random.Random(f"{split}{seed}") alone, and sort what comes from a set',
    "gold": "let score pay what gold(task) gives, with solve 1",
    "junk": "let score pay nothing for it: compare with the right answer as a whole",
    "raises": "return Score(0.0) for a completion that cannot be read",
    "finite": "return numbers that are finite and in their range",
    "time": "limit the length of what is read, or the work for it"}
"""Advice to the author of the plug-in for each check, used if the check has no `Failure` with a `remedy`."""


@dataclass(frozen=True)
class Finding:
    """The result of one check; `sound` is None if it could not be judged."""

    check: str
    sound: bool | None
    detail: str
    place: str = ""
    """The line of the plug-in to look at; empty if it is not known."""
    remedy: str = ""
    mistake: bool = False
    """Whether the finding is a mistake in the plug-in that prevents training: there are no tasks, scoring returns no `Score`, or
    no completion at all can be scored."""


def findings(seen: Evidence) -> list[Finding]:
    """The findings of every check, in order. If there are no tasks, only the first check can be judged."""
    return [_finding(name, seen, check(seen) if seen.trials or check is makes_tasks else (None, "no tasks"))
            for name, check in CHECKS.items()]


def _finding(name: str, seen: Evidence, verdict: Verdict) -> Finding:
    failure = verdict[2] if len(verdict) == 3 else None
    method = {"tasks": "tasks", "seed": "tasks", "gold": "gold"}.get(name, "episode" if "episode" in seen.lines else "score")
    place = (failure and failure.place) or seen.lines.get(method, "")
    broken = failure is not None and (failure.breaks_contract or not any(isinstance(each.result, Score) for each in seen.trials))
    return Finding(name, verdict[0], verdict[1], place, (failure and failure.remedy) or REMEDIES[name],
                   mistake=verdict[0] is False and (broken or name == "tasks"))


def unsound(found: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.sound is False]
