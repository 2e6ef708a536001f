"""The training loop of a distillation. Its result is the same to the bit whether or not it was killed in between.

The outcome of a step depends only on the weights, the optimizer's state and the number of the step: the texts of a step are drawn
from the seed and that number, and there is no dropout.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from routed_rl import console
from routed_rl.artifacts import replacing
from routed_rl.checkpoint import going_on_from
from routed_rl.config.robust import RobustifyConfig
from routed_rl.distillation.divergence import KEEP, Row, chunks, entropy, read, token_losses
from routed_rl.distillation.gates import samples_tokens
from routed_rl.errors import CheckFailed

WARM_UP, LEAST_RATE, EVERY, HELD_OUT, LONGEST_NORM = 50, 0.1, 25, 256, 1.0
"""The largest number of warm-up steps; the last learning rate divided by the largest; the number of steps between two
measurements; the largest number of held-out texts; and the norm to which a longer gradient is clipped."""
Curve = list[dict[str, float]]
"""A list of measurements. Each has the number of the step, the mean loss of the held-out tokens (without a gate, their mean KL),
and the teacher's mean entropy over the held-out tokens that the gate keeps."""


@dataclass(frozen=True)
class Texts:
    """The rows that the student learns from, and the decision of a gate about each counted token."""

    rows: Sequence[Row]
    actions: Sequence[Sequence[int]]

    @cached_property
    def held_out(self) -> list[int]:
        """Indices of the rows on which the loss is measured: about every tenth, at most `HELD_OUT`. The student learns from them
        only if there are fewer than ten rows."""
        return list(range(0, len(self.rows), max(10, math.ceil(len(self.rows) / HELD_OUT)) if len(self.rows) >= 10 else 1))

    @cached_property
    def pools(self) -> list[list[int]]:
        """Two lists of indices of rows: the completions, and the generic texts. Held-out rows are in neither list (unless there
        are fewer than ten rows), and an empty list is left out."""
        away = set(self.held_out) if len(self.rows) >= 10 else set[int]()
        every = [[place for place, row in enumerate(self.rows) if place not in away and (row.environment is None) == generic]
                 for generic in (False, True)]
        return [pool for pool in every if pool]

    def batch(self, step: int, size: int, seed: int) -> list[int]:
        """Choose the indices of the `size` rows of a step, equally many from each pool. In each pass through a pool every row
        comes once."""
        found: list[int] = []
        for number, pool in enumerate(self.pools):
            share = size // len(self.pools) + (number < size % len(self.pools))
            found += [pool[order(len(pool), place // len(pool), seed)[place % len(pool)]]
                      for place in range(step * share, (step + 1) * share)]
        return found


@lru_cache(maxsize=4)
def order(count: int, epoch: int, seed: int) -> list[int]:
    """Draw the permutation of `count` rows for the pass number `epoch`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 2**20 + epoch)).tolist()


class Distillation:
    """The training of a student. `trained` are the student's parameters that learn, by name; `vocabulary` is the number of logits
    of a token. `folder` holds the state from which an interrupted training continues."""

    def __init__(self, teacher: nn.Module, student: nn.Module, trained: dict[str, nn.Parameter], texts: Texts,
                 asked: RobustifyConfig, seed: int, vocabulary: int, folder: Path) -> None:
        self.teacher, self.student, self.trained, self.texts = teacher, student, trained, texts
        self.asked, self.seed, self.vocabulary, self.file = asked, seed, vocabulary, folder / "state.pt"
        self.optimizer = torch.optim.AdamW(trained.values(), asked.learning_rate, weight_decay=0.0)
        self.step, self.curve = 0, Curve()

    def run(self) -> Curve:
        """Train from the stored state until the held-out loss reaches `goal` or the last step is done; returns the curve."""
        self._load()
        with console.progress("distil", "steps") as advance:
            while not self._done():
                if self.step and self.step % self.asked.save_steps == 0:
                    self._save()
                for group in self.optimizer.param_groups:
                    group["lr"] = self.asked.learning_rate * rate_at(self.step, self.asked.steps)
                self.optimizer.zero_grad()
                loss = self.gradient(self.texts.batch(self.step, self.asked.batch, self.seed))
                norm = clip_grad_norm_(self.trained.values(), LONGEST_NORM)
                if not math.isfinite(loss) or not norm.isfinite():
                    raise CheckFailed(f"step {self.step + 1} of the distillation is not finite; lower --learning-rate "
                                      f"({self.asked.learning_rate:g})")
                self.optimizer.step()
                self.step += 1
                advance(self.step, self.asked.steps, f"held-out {self.curve[-1]['loss']:.4f}, to reach {self.goal:.4f}")
        return self.curve

    def seconds(self) -> float:
        """Measure how many seconds a step takes. Two steps are computed and not applied; the first one only warms up."""
        begin = 0.0
        for _ in range(2):
            begin = time.perf_counter()
            self.gradient(self.texts.batch(0, self.asked.batch, self.seed))
            self.optimizer.zero_grad()
        return time.perf_counter() - begin

    def gradient(self, places: list[int]) -> float:
        """Add to the parameters' gradients the gradient of the mean loss over all counted tokens of the rows with the indices
        `places`; a skipped token counts with loss 0. Returns that mean loss."""
        rows, total = [self.texts.rows[place] for place in places], 0.0
        count = sum(row.counted for row in rows)
        for chunk in chunks(rows, self.vocabulary):
            loss = self._losses([places[place] for place in chunk])[0].sum() / count
            loss.backward()
            total += loss.item()
        return total

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Measure, after the present step, the mean loss over the held-out tokens, and the teacher's mean entropy over the
        held-out tokens that the gate keeps."""
        places, loss, bits, kept, count = self.texts.held_out, 0.0, 0.0, 0, 0
        for chunk in chunks([self.texts.rows[place] for place in places], self.vocabulary):
            losses_N, teacher_NV, actions_N = self._losses([places[place] for place in chunk])
            loss, count = loss + losses_N.sum().item(), count + len(losses_N)
            bits, kept = bits + (entropy(teacher_NV) * (actions_N == KEEP)).sum().item(), kept + int((actions_N == KEEP).sum())
        return {"step": self.step, "loss": loss / max(count, 1), "entropy": bits / max(kept, 1)}

    @property
    def goal(self) -> float:
        """The held-out loss at which training ends: the setting `within` times the teacher's entropy at the last measurement."""
        return self.asked.within * self.curve[-1]["entropy"]

    def _losses(self, places: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        rows = [self.texts.rows[place] for place in places]
        with torch.no_grad():
            teacher_NV, tokens_N = read(self.teacher, rows)
        student_NV, _ = read(self.student, rows)
        actions_N = torch.tensor([action for place in places for action in self.texts.actions[place]], device=tokens_N.device)
        losses_N = token_losses(teacher_NV, student_NV, tokens_N, actions_N, sampled=samples_tokens(self.asked))
        return losses_N, teacher_NV, actions_N

    def _done(self) -> bool:
        """Measure if a measurement is due, and return whether training ends. With a gate for which `samples_tokens` is true,
        training always runs to the last step, because the loss of the tokens that such a gate keeps may fall below 0."""
        if (not self.curve or self.curve[-1]["step"] != self.step) and (self.step % EVERY == 0 or self.step >= self.asked.steps):
            self.curve.append(self.measure())
        near = self.curve[-1]["loss"] <= self.goal and self.asked.within > 0 and not samples_tokens(self.asked)
        return self.step >= self.asked.steps or (near and self.curve[-1]["step"] == self.step)

    def _save(self) -> None:
        with replacing(self.file) as partial:
            torch.save({"step": self.step, "curve": self.curve, "optimizer": self.optimizer.state_dict(),
                        "student": {name: parameter.detach() for name, parameter in self.trained.items()}}, partial)

    def _load(self) -> None:
        if not self.file.exists():
            return
        with going_on_from(self.file):
            state: dict[str, Any] = torch.load(self.file, weights_only=True, map_location="cpu")
            with torch.no_grad():
                for name, parameter in self.trained.items():
                    parameter.copy_(state["student"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.curve = state["step"], state["curve"]
        console.say(f"going on from step {self.step}")


def rate_at(step: int, steps: int) -> float:
    """Return the learning rate at a step, as a share of the largest one: a linear warm-up, then a cosine to `LEAST_RATE` at the
    last step."""
    warm = min(WARM_UP, max(steps // 10, 1))
    cosine = math.cos(math.pi * max(step - warm, 0) / max(steps - warm, 1))
    return min(1.0, (step + 1) / warm) * (LEAST_RATE + (1 - LEAST_RATE) * (1 + cosine) / 2)
