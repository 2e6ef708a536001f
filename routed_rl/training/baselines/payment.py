"""Changes the scores of a generation before advantages are computed from them. A completion that the detector names is screened,
so that it teaches nothing, or a penalty is subtracted from its reward. For imitation, the rows that solve their tasks are
marked."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from routed_rl.config import BaselineConfig
from routed_rl.envs import Score
from routed_rl.errors import CheckFailed
from routed_rl.extraction.pooled import Said
from routed_rl.ranks import RANKS
from routed_rl.training.baselines.detector import Detector, FlagDetector, Key, check_names, drawn, is_marked

ROUNDING = 1e-2
"""Advantages smaller than this come from rounding. If all completions of a group are paid alike, TRL divides a rounding error of
about 1e-7 by 1e-4."""


class Payment:
    """Changes the scores that are paid, by the settings of a baseline. Call `pay` for each generation, and `learned` when the
    generation's advantages are known."""

    def __init__(self, settings: BaselineConfig, seed: int, group_size: int, detector: Detector | None = None,
                 environments: Sequence[str] = ()) -> None:
        """`group_size`: completions per group. `detector`: names bad completions; if it is None, a `FlagDetector` is made.
        `environments`: the names of all environments that are trained on."""
        self.settings, self.group_size, self.seed = settings, group_size, seed
        self.detector: Detector = detector or FlagDetector(settings.detector, seed)
        self.imitated: list[bool] = []
        """For each row of the newest generation, whether it has the advantage 1 under `baseline.imitate`, because it solves its
        task."""
        self.found: list[bool] = []
        """For each row of the newest generation, whether the detector named it as bad."""
        self.screened: list[bool] = []
        """For each row of the newest generation, whether it teaches nothing because the detector named it as bad."""
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._environments = set(environments)
        self._reported: dict[str, set[str]] = defaultdict(set)
        """The names of the flags of each environment that reports flags whether or not they hold, so far."""

    def pay(self, names: Sequence[str], scores: Sequence[Score | None], keys: Sequence[Key], said: Sequence[Said] = ()
            ) -> list[Score | None]:
        """Return the scores that are paid for the rows of a generation, from the scores that the environments gave. The result is
        None for a row that teaches nothing, because it was screened or could not be scored. `names`: the environment of each row.
        `keys`: which completion of the run each row is. `said`: the prompt and text of each row, for detectors that read text.
        ConfigError once it is certain that no environment reports a flag that the detector uses."""
        self._check_flags(names, scores)
        found, paid = self._find(scores, keys, said), list[Score | None]()
        self.screened = [named and self.settings.screen for named in found]
        for name, score, named in zip(names, scores, found, strict=True):
            if score is None or (named and self.settings.screen):
                paid.append(None)
            else:
                paid.append(dataclasses.replace(score, reward=score.reward - self.settings.penalty * named))
            counts, marked = self._counts[name], is_marked(self.settings.detector, score)
            counts.update(completions=score is not None, marked=marked, named=named, hits=named and marked,
                          screened=named and self.settings.screen)
        self.imitated = [score is not None and score.solve == 1 for score in paid]
        for start in range(0, len(paid), self.group_size):
            group = range(start, min(start + self.group_size, len(paid)))
            self._counts[names[start]]["starved"] += all(paid[row] is None for row in group) and any(found[row] for row in group)
        return paid

    def learned(self, names: Sequence[str], scores: Sequence[Score | None], advantages: Tensor) -> None:
        """Count the truly bad completions (see `is_marked`) that are encouraged. `names`, `scores`: as in `pay`. `advantages`:
        (B,), or (B, C) with one for each token. A completion is encouraged if any of its advantages is above `ROUNDING`.
        CheckFailed if a truly bad completion is encouraged although the detector misses none and every completion that it names
        is screened."""
        encouraged_B = advantages.view(len(advantages), -1).gt(ROUNDING).any(1).tolist()
        for name, score, encouraged in zip(names, scores, encouraged_B, strict=True):
            self._counts[name]["encouraged_marked"] += encouraged and is_marked(self.settings.detector, score)
        self._check()

    def _check_flags(self, names: Sequence[str], scores: Sequence[Score | None]) -> None:
        """ConfigError if every environment has reported flags, and none of the flags that the detector uses is among them. A
        single generation may have completions of some environments only, and a score whose flags all hold may leave out those
        that do not hold."""
        for name, score in zip(names, scores, strict=True):
            if score is not None and isinstance(score.flags, Mapping) and not all(score.flags.values()):
                self._reported[name].update(score.flags)
        if self._reported.keys() >= self._environments:
            check_names(self.settings.detector, {flag for flags in self._reported.values() for flag in flags})

    def _find(self, scores: Sequence[Score | None], keys: Sequence[Key], said: Sequence[Said]) -> list[bool]:
        found = self.detector.find(scores, keys, said)
        if self.settings.detector.shuffle:
            rows = [row for row, score in enumerate(scores) if score is not None]
            chosen = set(sorted(rows, key=lambda row: drawn("shuffle", self.seed, keys[row]))[:sum(found)])
            found = [row in chosen for row in range(len(scores))]
        self.found = found
        return found

    def _check(self) -> None:
        detector = self.settings.detector
        exact = isinstance(self.detector, FlagDetector) and detector.recall == 1 and not detector.shuffle and self.settings.screen
        for name, counts in self._counts.items():
            if exact and counts["encouraged_marked"]:
                raise CheckFailed(f"{counts['encouraged_marked']} marked completions of {name} were encouraged though every one "
                                    "is screened; this is a fault of routed_rl, please report it")

    def take_metrics(self) -> dict[str, float]:
        """Return the metrics `baseline/<env>/...` of the completions since the last call of this method, from all processes."""
        everyone = RANKS.gather({name: dict(counts) for name, counts in self._counts.items()})
        totals: dict[str, Counter[str]] = defaultdict(Counter)
        self._counts.clear()
        for mine in everyone:
            for name, counts in mine.items():
                totals[name].update(counts)
        metrics: dict[str, float] = {}
        for name, counts in sorted(totals.items()):
            metrics |= {f"baseline/{name}/{key}": counts[key] for key in ("named", "screened", "starved", "encouraged_marked")}
            if counts["marked"]:
                metrics[f"baseline/{name}/recall"] = counts["hits"] / counts["marked"]
            if counts["named"]:
                metrics[f"baseline/{name}/precision"] = counts["hits"] / counts["named"]
        return metrics


def imitation(advantages: Tensor, imitated: Sequence[bool]) -> Tensor:
    """Return advantages that are 1 for rows that are imitated and 0 for all others, in the shape of `advantages`, (B,) or (B,
    C)."""
    rows = torch.tensor(imitated, device=advantages.device, dtype=advantages.dtype)
    return rows.view(-1, *[1] * (advantages.dim() - 1)).expand_as(advantages).clone()
