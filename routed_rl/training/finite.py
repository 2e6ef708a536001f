"""Keeps numbers that are not finite out of checkpoints: every step is checked, and every checkpoint before it is sealed. If there
are several processes, all of them find the same problem and end alike. Not covered: a rollout engine that samples from such
numbers, which the loss then shows."""

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
"""Parts of torch's messages, on a CPU and on a GPU, about probabilities that are not finite."""


class FiniteCheck:
    """Checks that a trainer's losses, gradients, weights and quarantine have no nan or infinity. CheckFailed names the step and,
    if it is known, the environment."""

    def __init__(self, run: RunFolder, router: Router | None, environments: list[str]) -> None:
        self.run, self.router, self.environments = run, router, environments
        self.norm = 0.0
        """The norm of the gradient of this step."""
        self._losses: list[tuple[Tensor, Tensor]] = []
        """For each micro-batch of this step, its loss and the environments of its rows."""
        self._row: dict[str, Tensor] = {}
        """The last row that was learned from, in the form of inputs to the model."""

    def loss(self, loss: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Record the loss of a micro-batch; returns `loss`."""
        self._losses.append((loss.detach(), inputs["environment_ids"]))
        ids, mask = (torch.cat([inputs[f"prompt_{what}"][-1:], inputs[f"completion_{what}"][-1:]], 1) for what in ("ids", "mask"))
        self._row = {"input_ids": ids, "attention_mask": mask}
        return loss

    @contextmanager
    def sampling(self, step: int) -> Iterator[None]:
        """Inside the block, torch's error about sampling becomes a CheckFailed, because weights that are huge or not finite give
        no valid probabilities."""
        try:
            yield
        except RuntimeError as error:
            if not any(text in str(error) for text in SAMPLING):
                raise
            self._refuse(step, "a probability of the policy", [])

    def step(self, step: int) -> None:
        """Check the losses and the norm of the gradient before the optimizer makes step `step`."""
        losses = [bool(loss.isfinite()) for loss, _ in self._losses]
        mine = "the loss" if not all(losses) else "" if math.isfinite(self.norm) else "the norm of the gradient"
        if found := max(RANKS.gather(mine)):
            everyone = {name for names in RANKS.gather(self._suspects(losses)) for name in names}
            self._refuse(step, found, [name for name in self.environments if name in everyone])
        self._losses, self.norm = [], 0.0

    def quarantine(self, step: int, row: dict[str, float]) -> None:
        """Check the quarantine after its step `step`; `row` is the ledger's row of that step."""
        if not math.isfinite(row["quarantine/norm"]) or not math.isfinite(row["quarantine/growth"]):
            self._refuse(step, "the quarantine", [name for name in self.environments
                                                  if not math.isfinite(row.get(f"ledger/{name}/part_norm", 0.0))])

    def checkpoint(self, step: int, folder: Path, model: Any) -> None:
        """Check all tensors of the checkpoint in `folder`, and the policy's logits, before it is sealed."""
        found = RANKS.first(first_nonfinite(folder) if RANKS.rank == 0 else None)
        if found is None and not all(RANKS.gather(self._has_finite_logits(model))):
            found = "a logit of the policy"
        if found is not None:
            self._refuse(step, found, [])

    @torch.no_grad()
    def _has_finite_logits(self, model: Any) -> bool:
        """Check the logits of one row: weights can be finite and yet too large to compute with."""
        with eval_mode(model):
            return not self._row or bool(model(**self._row, use_cache=False).logits.isfinite().all())

    def _suspects(self, losses: list[bool]) -> list[str]:
        """The environments whose rows made their part of the ledger not finite; without routing, the environments in the
        micro-batches whose loss is not finite."""
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
