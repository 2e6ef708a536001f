"""Keeps numbers that are not finite out of checkpoints: every step is checked, and every checkpoint is checked before it is
sealed. If there are several processes, all of them find the same problem and end with the same error. Not covered: a rollout
engine that samples from weights that are not finite; in that case the check of the loss finds the problem."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from routed_rl.artifacts import RunFolder, first_nonfinite
from routed_rl.errors import CheckFailed
from routed_rl.model.stream import eval_mode
from routed_rl.ranks import RANKS
from routed_rl.routing import Router

SAMPLING = ("probability tensor contains", "device-side assert")
"""Parts of the messages by which torch refuses to sample from probabilities that are not finite, on a CPU and on a GPU."""


class FiniteCheck:
    """Checks that a trainer's losses, gradients, weights and quarantine have no nan or infinity. Every method raises CheckFailed
    if it finds one; the message names the step and, if it is known, the environment."""

    def __init__(self, run: RunFolder, router: Router | None, environments: list[str]) -> None:
        self.run, self.router, self.environments = run, router, environments
        self.norm = 0.0
        """The norm of the gradient of this step."""
        self._losses: list[tuple[Tensor, Tensor]] = []
        """For each micro-batch of this step, its loss and the environments of its rows."""
        self._row: dict[str, Tensor] = {}
        """The last row of the last micro-batch whose loss was recorded, as arguments of the model's forward pass."""

    def begin(self) -> None:
        """Forget the recorded losses and the norm before a new step, because an exception may have ended the step before it."""
        self._losses, self.norm = [], 0.0

    def loss(self, loss: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Record the loss of a micro-batch with these `inputs`, for the check in `step`; returns `loss`."""
        self._losses.append((loss.detach(), inputs["environment_ids"]))
        ids, mask = (torch.cat([inputs[f"prompt_{what}"][-1:], inputs[f"completion_{what}"][-1:]], 1) for what in ("ids", "mask"))
        self._row = {"input_ids": ids, "attention_mask": mask}
        return loss

    @contextmanager
    def sampling(self, step: int) -> Iterator[None]:
        """Inside the block, an error of torch about invalid probabilities becomes a CheckFailed, because it comes from weights
        that are huge or not finite."""
        try:
            yield
        except RuntimeError as error:
            if not any(text in str(error) for text in SAMPLING):
                raise
            self._refuse(step, "a probability of the policy", [])

    def step(self, step: int) -> None:
        """Check the recorded losses and the norm of the gradient, before the optimizer makes the step with the number `step`."""
        losses = [bool(loss.isfinite()) for loss, _ in self._losses]
        mine = "the loss" if not all(losses) else "" if math.isfinite(self.norm) else "the norm of the gradient"
        if found := max(RANKS.gather(mine)):
            everyone = {name for names in RANKS.gather(self._suspects(losses)) for name in names}
            self._refuse(step, found, [name for name in self.environments if name in everyone])
        self.begin()

    def quarantine(self, step: int, row: dict[str, float]) -> None:
        """Check the quarantine after it has made the step with the number `step`; `row` is the ledger's row of that step."""
        if not math.isfinite(row["quarantine/norm"]) or not math.isfinite(row["quarantine/growth"]):
            self._refuse(step, "the quarantine", [name for name in self.environments
                                                  if not math.isfinite(row.get(f"ledger/{name}/part_norm", 0.0))])

    def checkpoint(self, step: int, folder: Path, model: Any) -> None:
        """Check all tensors of the checkpoint in `folder`, and the policy's logits. Call this before the checkpoint is sealed,
        that is marked as complete."""
        found = RANKS.first(first_nonfinite(folder) if RANKS.rank == 0 else None)
        if found is None and not all(RANKS.gather(self._has_finite_logits(model))):
            found = "a logit of the policy"
        if found is not None:
            self._refuse(step, found, [])

    @torch.no_grad()
    def _has_finite_logits(self, model: Any) -> bool:
        """Whether the model's logits for the last recorded row (`_row`) are finite; True if none is recorded. Weights can be
        finite and yet too large to compute with."""
        with eval_mode(model):
            return not self._row or bool(model(**self._row, use_cache=False).logits.isfinite().all())

    def _suspects(self, losses: list[bool]) -> list[str]:
        """Return the environments that may have caused a number that is not finite: those whose share of a ledger is not finite,
        or, without routing, those with rows in a micro-batch whose loss is not finite. `losses`: whether each recorded loss is
        finite."""
        if self.router is not None and self.router.quarantine.targets:
            ledgers = [target.tape.ledger for target in self.router.quarantine.targets]
            return [name for place, name in enumerate(self.environments)
                    if not all(bool(ledger[place].isfinite().all()) for ledger in ledgers)]
        places = {place for finite, (_, ids) in zip(losses, self._losses, strict=True) if not finite for place in ids.tolist()}
        return [self.environments[place] for place in sorted(places)]

    def _refuse(self, step: int, what: str, environments: list[str]) -> NoReturn:
        whole, _ = self.run.last_checkpoint()
        by = f" in the rows of {', '.join(environments)}" if environments else ""
        kept = f"the last finite checkpoint is {whole.name}" if whole else "there is no checkpoint before it"
        raise CheckFailed(f"step {step}: {what} is not finite{by}; nothing of this step was saved, {kept}; lower "
                          f"trainer.learning_rate or repair what the environment pays, then {self.run.go_on('KEY=VALUE')}")
