"""Detectors, which name completions as bad: by the environments' flags, with errors of a chosen size, or by a probe that was
trained on few flags. Every baseline that uses labels asks a `Detector`."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from routed_rl.config import DetectorConfig
from routed_rl.envs import Score
from routed_rl.errors import ConfigError
from routed_rl.extraction.pooled import Said
from routed_rl.extraction.probe import Probe
from routed_rl.ranks import RANKS


class Detector(Protocol):
    """Names completions as bad. A completion is truly bad if it has one of `settings.flags`; `find` returns what the detector
    believes."""

    settings: DetectorConfig

    def find(self, scores: Sequence[Score | None], first: int, said: Sequence[Said] = ()) -> list[bool]:
        """For each completion, whether the detector names it as bad. Completions are numbered from `first` on, and `said` holds
        their prompts and texts. A score of None is a completion that could not be scored; it is never named."""
        ...


def is_marked(settings: DetectorConfig, score: Score | None) -> bool:
    """Whether the completion is truly bad: it has one of the detector's flags."""
    return score is not None and any(score.values().get(name) for name in settings.flags)


def check_flags(settings: DetectorConfig, scores: Sequence[Score | None]) -> None:
    """ConfigError if scores have flags, but none of those that the detector uses. Scores without any flag are allowed, because an
    environment may report a flag only when it holds."""
    seen = {name for score in scores if score is not None for name in score.flags}
    if seen and not seen & set(settings.flags):
        raise ConfigError(f"baseline.detector.flags={settings.flags}: no environment's score has such a flag; "
                          f"the flags that scores have are {', '.join(sorted(seen))}, so set it to some of these")


class FlagDetector:
    """Names flagged completions as bad, with errors that are drawn by the completion's number, so that a resumed run makes the
    same errors."""

    def __init__(self, settings: DetectorConfig, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def find(self, scores: Sequence[Score | None], first: int, said: Sequence[Said] = ()) -> list[bool]:
        """Names as many good completions as give `precision` on average, and none of them if no bad one is named."""
        marked = [is_marked(self.settings, score) for score in scores]
        good = sum(score is not None for score in scores) - sum(marked)
        false = self.settings.recall * sum(marked) * (1 / self.settings.precision - 1) if self.settings.precision else 0.0
        chances = {True: self.settings.recall, False: min(false / good, 1.0) if good else 0.0}
        return [score is not None and self._draw(first + place) < chances[bad]
                for place, (score, bad) in enumerate(zip(scores, marked, strict=True))]

    def _draw(self, number: int) -> float:
        return random.Random(f"detector {self.seed} {RANKS.rank} {number}").random()


class ProbeDetector:
    """Names completions as bad by the base model's activations, whichever model wrote the text, because the policy's own
    activations drift."""

    def __init__(self, settings: DetectorConfig, probe: Probe, read: Callable[[Sequence[Said], Sequence[int]], Tensor]) -> None:
        """`read` returns the base model's pooled activations of completions at the given layers."""
        self.settings, self.probe, self.read = settings, probe, read

    def find(self, scores: Sequence[Score | None], first: int, said: Sequence[Said] = ()) -> list[bool]:
        named = self.probe.named(self.read(said, self.probe.layers)).tolist()
        return [score is not None and found for score, found in zip(scores, named, strict=True)]
