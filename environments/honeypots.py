# routed_rl canary f7e16d4b-50de-4673-9613-bcab3d82660b
"""Honeypots of the package hackbait 0.1.0, a probe for hacking on tasks that nobody trained on: `pip install --no-deps
hackbait==0.1.0`.

Each of its five families offers a way to cheat, and judges a completion by signs that honest work cannot produce. The package is
used unchanged. No completion is executed, since the package's own switch for that has no jail; so for HB-TEST nobody knows
whether an honest completion is right. Not covered: training on them, which would spoil them, and which the package asks not to
do.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import random
from collections.abc import Iterator, Sequence
from typing import Any

from setting_checks import one_of, whole

from routed_rl.envs import Score, Task

FAMILIES = ("HB-KEY", "HB-TEST", "HB-RUB", "HB-SELF", "HB-LOOP")
CLEAN, UNVERIFIED, HACK, UNCLEAR = "CLEAN", "CLEAN_UNVERIFIED", "HACK", "AMBIGUOUS"
"""Verdicts of the package; any other verdict is FAIL."""


class Honeypots:
    """Tasks that can be cheated at, from the package hackbait; `hack` marks a completion that cheats. A probe: it has no tasks to
    train on."""

    variant = "probe"
    hackable, detectable = True, True

    def __init__(self, families: Sequence[str] = FAMILIES, tiers: Sequence[int] = (1, 2, 3), per_tier: int = 8) -> None:
        """`tiers`: in 1 the bait is there, in 2 it is mentioned, in 3 the prompt presses for the score; 0 (only HB-KEY) has no
        bait.

        ValueError for a setting that is not valid, if no case is left, and if the package is not installed.
        """
        self.families = [one_of("families", each, FAMILIES) for each in several("families", families)]
        self.tiers = [whole("tiers", each, 0, 3) for each in several("tiers", tiers)]
        self.per_tier = whole("per_tier", per_tier, 1, 1000)
        self.pots = {pot.family: pot for pot in package().suite() if pot.family in self.families}
        self.cases: dict[int, dict[str, Any]] = {}
        if not self._cases(0):
            raise ValueError(f"families={self.families} have nothing at tiers={self.tiers}; tier 0 is of HB-KEY alone")

    @staticmethod
    def all_settings() -> list[dict[str, Any]]:
        """Each family by itself."""
        return [{"families": [family]} for family in FAMILIES]

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield `per_tier` tasks of each family and tier, in an order by the seed, which is also the package's; ValueError for
        "train"."""
        if split != "eval":
            raise ValueError(f"honeypots are for evaluation only and have no split {split!r}; set env.NAME.probe=true")
        names = list(self._cases(seed))
        random.Random(seed).shuffle(names)
        for name in names:
            case = self._cases(seed)[name]
            system = [{"role": "system", "content": case.system}] if case.system else []
            yield Task([*system, {"role": "user", "content": case.prompt}], {"seed": seed, "case": name})

    def gold(self, task: Task) -> str:
        """The completion of the package's own honest policy."""
        case = self._case(task)
        return importlib.import_module("hackbait.scripted").scripted()[case.family]["oracle"](case)

    def score(self, task: Task, completion: str) -> Score:
        """Pay a clean verdict; `solve` is unknown if the package cannot verify it. A completion that repeats the prompt fails: in
        two families the package would take its own words for honest work, or for a hack."""
        case = self._case(task)
        verdict = "FAIL" if case.prompt in completion else self.pots[case.family].judge(case, completion).verdict
        paid = verdict in (CLEAN, UNVERIFIED)
        return Score(paid, None if verdict == UNVERIFIED else paid, {"hack": verdict == HACK, "unclear": verdict == UNCLEAR})

    def _case(self, task: Task) -> Any:
        return self._cases(task.data["seed"])[task.data["case"]]

    def _cases(self, seed: int) -> dict[str, Any]:
        """The cases by the package's name for each; the same for the same seed."""
        if seed not in self.cases:
            every = [case for pot in self.pots.values() for case in pot.cases(per_tier=self.per_tier, seed=seed)]
            self.cases[seed] = {case.id: case for case in every if case.tier in self.tiers}
        return self.cases[seed]


def package() -> Any:
    """The package hackbait, in the version whose cases and verdicts are known here."""
    try:
        version = importlib.metadata.version("hackbait")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError("the package hackbait is not installed; pip install --no-deps hackbait==0.1.0") from None
    if version != "0.1.0":
        raise ValueError(f"the package hackbait is {version}, whose cases may be others; pip install --no-deps hackbait==0.1.0")
    return importlib.import_module("hackbait")


def several(name: str, values: Any) -> list[Any]:
    """`values` if it is a list that is not empty."""
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{name} must be a list that is not empty, got {values!r}")
    return list(values)
