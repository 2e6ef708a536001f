"""The step of a routed trainer, as a mixin. It tells the router which environment each row of a loss is from, makes the
quarantine's step after the optimizer's, and writes the metrics of the step. Not covered: fused losses."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.ranks import RANKS
from routed_rl.routing import Rates, Router
from routed_rl.routing.labels import LabelRouter, positions_of
from routed_rl.tracking import MetricsFile
from routed_rl.training.finite import FiniteCheck
from routed_rl.training.lean import SAMPLED, Pass, unread_rows
from routed_rl.training.rows import Rows
from routed_rl.training.watch import Watch

ALIKE = "frac_reward_zero_std"
"""TRL's name for the share of groups in which all completions are paid alike."""


class StepMixin:
    """Learns from the rows that have been generated. It is a base class of `RoutedTrainerMixin`."""

    router: Router | None
    reward: Rows
    watch: Watch | None
    finite: FiniteCheck
    metrics_file: MetricsFile
    clip_coefficient: float
    """The factor by which the norm of this step's gradient was clipped."""
    step_metrics: dict[str, Any]
    rollout_metrics: dict[str, float]
    """Metrics of this step's rollouts, which are added by the code that makes rollouts."""
    groups_alike: list[float]
    """For each of this step's generations, the share of groups in which all completions are paid alike."""
    _step_started: float
    _unread: list[tuple[Tensor, Tensor]]
    """For each micro-batch of this step, the result of `unread_rows`: the completions that were left out of the forward pass
    because they have no gradient."""
    _wrote: bool
    """Whether the row of this step is in `metrics_file`."""

    def _begin_records(self) -> None:
        """Begin what is recorded of one step. What an exception in the step before has left is dropped."""
        self._step_started, self.clip_coefficient, self._wrote = time.perf_counter(), 1.0, False
        self._unread, self.groups_alike = [], []

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        if "flagged" in inputs and isinstance(self.router, LabelRouter):
            self.router.see(inputs["flagged"])
        loss = super()._compute_loss(model, inputs)  # pyright: ignore[reportAttributeAccessIssue]
        if torch.is_grad_enabled() and "completion_index" in inputs:
            self._unread.append(unread_rows(inputs))
        return self.finite.loss(loss, inputs) if torch.is_grad_enabled() else loss

    def name_rows(self, inputs: dict[str, Tensor], some: Pass | None) -> None:
        """Tell the router which rows of the micro-batch `inputs` are in the next forward pass: the rows of the pass `some`, or
        all rows if `some` is None."""
        if self.router is None:
            return
        rows = slice(None) if some is None else some.rows_R
        if some is None:
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        else:
            mask = some.mask_RT if inputs.get(SAMPLED, True) else torch.zeros_like(some.mask_RT)
        flags: dict[str, Tensor] = {}
        if "flagged" in inputs:
            marks = positions_of(inputs["flagged"][rows], inputs["prompt_mask"].shape[1] + inputs["completion_mask"].shape[1])
            flags["flagged_BT"] = marks if some is None else marks.gather(1, some.columns_RT)
        named = [inputs.get(key) for key in ("completion_index", "practising")]
        numbers, practising = (None if each is None else each[rows] for each in named)
        self.router.set_batch(inputs["environment_ids"][rows], mask, numbers, practising, **flags)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm = super()._clip_grad_norm(model)  # pyright: ignore[reportAttributeAccessIssue]
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # the full norm of sharded weights
        limit = self.args.max_grad_norm  # pyright: ignore[reportAttributeAccessIssue]
        self.finite.norm = float(norm)
        self.clip_coefficient = min(1.0, limit / (self.finite.norm + 1e-6))
        return norm

    def begin_routing(self, step: int) -> None:
        """Prepare routing for the step with the number `step` (counted from 0), before its first micro-batch."""
        self._begin_records()
        self.finite.begin()
        if self.router is not None:
            self.router.begin_step(step)

    def step_routing(self, step: int) -> None:
        """Make the quarantine's step `step` (counted from 0) after the model's optimizer has stepped. The ledger's row of this
        step becomes part of `step_metrics`."""
        self.step_metrics, self.rollout_metrics = self.reward.take_metrics() | self.rollout_metrics, {}
        if known := [share for share in self.groups_alike if not math.isnan(share)]:
            self.step_metrics[f"train/{ALIKE}"] = sum(known) / len(known)
        self.groups_alike = []
        if self.router is not None:
            rates = Rates(self.optimizer.param_groups)  # pyright: ignore[reportAttributeAccessIssue]
            row, rows = self.router.after_step(step, clip=self.clip_coefficient, rates=rates)
            self.finite.quarantine(step + 1, row)
            self.step_metrics |= row
            if rows is not None:
                self.reward.completions.learned(rows.with_none(*map(torch.cat, zip(*self._unread, strict=True)))
                                                if self._unread else rows)
        self._unread = []
        self.step_metrics["time/step_s"] = time.perf_counter() - self._step_started

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.step_metrics)
        super().log(logs, start_time)  # pyright: ignore[reportAttributeAccessIssue]
        if "loss" in logs:
            self.write_metrics(logs)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the metrics of a step as one line of metrics.jsonl, and have the monitor judge them. Called after every step,
        even if TRL logs less often. A second call for the same step does nothing: with `logging_strategy=epoch` TRL logs the last
        step of an epoch once more."""
        if self._wrote:
            return
        self._wrote = True
        # Our metrics are of this step; TRL's are of all steps since it last logged.
        named = {f"train/{key}": value for key, value in metrics.items() if key not in self.step_metrics} | self.step_metrics
        step = self.state.global_step  # pyright: ignore[reportAttributeAccessIssue]
        row = self.metrics_file.append(step, named) if RANKS.rank == 0 else {}
        if self.watch is not None:
            self.watch.see(row, self.control)  # pyright: ignore[reportAttributeAccessIssue]
