"""Detectors, which name completions as bad: by the environments' flags, with errors of a chosen rate, or by a linear probe that
learned from a few flags. Every baseline that uses labels asks a `Detector`."""

import random
from collections.abc import Callable, Sequence, Set
from typing import Protocol

from torch import Tensor

from routed_rl.config import DetectorConfig
from routed_rl.envs import Score
from routed_rl.errors import ConfigError
from routed_rl.extraction.pooled import Said
from routed_rl.extraction.probe import Probe

Key = tuple[int, int]
"""Names a completion of a run: the id of its task, and its place among the completions of this task. The key does not depend on
the number of processes."""


class Detector(Protocol):
    """Names completions as bad. A completion is truly bad if it has one of `settings.flags`; the detector may err about it."""

    settings: DetectorConfig

    def find(self, scores: Sequence[Score | None], keys: Sequence[Key], said: Sequence[Said] = ()) -> list[bool]:
        """Return, for each completion, whether the detector names it as bad. `scores`: the completions' scores. A completion that
        could not be scored has the score None, and is never named. `keys`: which completions of the run they are. `said`: the
        completions' prompts and texts, which only detectors that read text need."""
        ...


def is_marked(settings: DetectorConfig, score: Score | None) -> bool:
    """Whether the completion with this score is truly bad, because it has one of `settings.flags`."""
    return score is not None and any(score.values().get(name) for name in settings.flags)


def check_flags(settings: DetectorConfig, scores: Sequence[Score | None]) -> None:
    """ConfigError if scores have flags, but none of those that the detector uses. Scores without any flag are accepted, because
    an environment may report a flag only when it is true."""
    check_names(settings, {name for score in scores if score is not None for name in score.flags})


def check_names(settings: DetectorConfig, seen: Set[str]) -> None:
    """ConfigError if none of the flags that the detector uses is among `seen`, the names of the flags that scores have. If scores
    have no flags at all, this is accepted."""
    if seen and not seen & set(settings.flags):
        raise ConfigError(f"baseline.detector.flags={settings.flags}: no environment's score has such a flag; "
                          f"the flags that scores have are {', '.join(sorted(seen))}, so set it to some of these")


class FlagDetector:
    """Names flagged completions as bad, with random errors. The random draw for a completion depends on its key alone, so that a
    resumed run draws alike, also with another number of processes."""

    def __init__(self, settings: DetectorConfig, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def find(self, scores: Sequence[Score | None], keys: Sequence[Key], said: Sequence[Said] = ()) -> list[bool]:
        """Name bad completions with the chance `settings.recall`, and so many good ones that the precision is
        `settings.precision` on average. If there are no bad completions, none is named."""
        marked = [is_marked(self.settings, score) for score in scores]
        good = sum(score is not None for score in scores) - sum(marked)
        false = self.settings.recall * sum(marked) * (1 / self.settings.precision - 1) if self.settings.precision else 0.0
        chances = {True: self.settings.recall, False: min(false / good, 1.0) if good else 0.0}
        return [score is not None and drawn("detector", self.seed, key) < chances[bad]
                for score, bad, key in zip(scores, marked, keys, strict=True)]


def drawn(purpose: str, seed: int, key: Key) -> float:
    """A random number from 0 to 1 that depends on the arguments alone."""
    return random.Random(f"{purpose} {seed} {key[0]} {key[1]}").random()


class ProbeDetector:
    """Names completions as bad by a linear probe. The probe gets the activations of the base model on a completion, not those of
    the policy that wrote it, because the policy's activations drift during training."""

    def __init__(self, settings: DetectorConfig, probe: Probe, read: Callable[[Sequence[Said], Sequence[int]], Tensor]) -> None:
        """`read`: function that maps completions with their prompts, and layers, to the base model's pooled activations over the
        completions."""
        self.settings, self.probe, self.read = settings, probe, read

    def find(self, scores: Sequence[Score | None], keys: Sequence[Key], said: Sequence[Said] = ()) -> list[bool]:
        named = self.probe.named(self.read(said, self.probe.layers)).tolist()
        return [score is not None and found for score, found in zip(scores, named, strict=True)]
