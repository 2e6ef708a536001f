"""A detector whose recall and precision are given: it knows an environment's flags and errs as often as it is told to."""

import random
from collections.abc import Sequence

from routed_rl.config import DetectorConfig
from routed_rl.envs import Score
from routed_rl.ranks import RANKS


class FlagDetector:
    """Errors are drawn by the completion's number, so that a run which is resumed errs alike."""

    def __init__(self, settings: DetectorConfig, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def marked(self, score: Score | None) -> bool:
        """Whether the completion is bad in truth."""
        return score is not None and any(score.values().get(name) for name in self.settings.flags)

    def find(self, scores: Sequence[Score | None], first: int) -> list[bool]:
        """Which of the completions it names; they are numbered from `first` on. So many good ones are named that `precision`
        holds on average: none where nothing bad is named."""
        marked = [self.marked(score) for score in scores]
        good = sum(score is not None for score in scores) - sum(marked)
        false = self.settings.recall * sum(marked) * (1 / self.settings.precision - 1) if self.settings.precision else 0.0
        chances = {True: self.settings.recall, False: min(false / good, 1.0) if good else 0.0}
        return [score is not None and self._draw(first + place) < chances[bad]
                for place, (score, bad) in enumerate(zip(scores, marked, strict=True))]

    def _draw(self, number: int) -> float:
        return random.Random(f"detector {self.seed} {RANKS.rank} {number}").random()
