"""PPO (arXiv:1707.06347) on TRL's GRPO machinery: a linear value head on the policy's stream, advantages by token.

The policy's loss, its clipping, inner epochs (`num_iterations`) and the KL to the reference are TRL's. The head stands beside
the model: it is neither routed nor deployed nor pushed to an engine. Not covered: several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from trl import GRPOConfig, GRPOTrainer

from routed_rl.errors import CheckpointError
from routed_rl.training.gae import at_last_own, explained_variance, gae, rewards_to_go, whitened

VALUE_HEAD = "value_head.safetensors"
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
"""Those of TRL that read an advantage for each token."""


@dataclass
class PPOConfig(GRPOConfig):
    """GRPO's settings, without those that make advantages of groups, and the critic's."""

    gamma: float = 1.0
    """Discount per own token."""
    gae_lambda: float = 0.95
    """0: one step of the value's own prediction; 1: what was paid, minus the value."""
    whiten_advantages: bool = True
    """Mean 0 and deviation 1 over the own tokens of a generation."""
    value_learning_rate: float = 3e-3
    """Of the head alone, under the same schedule as `learning_rate`; 0 freezes it."""
    value_coefficient: float = 0.5
    """Of the value's loss beside the policy's."""
    value_clip: float | None = 0.2
    """How far a value may move from what it was when the completions were made, in units of reward; null: no bound."""
    value_detach: bool = True
    """False: the value's loss trains the model too, and its gradient is routed as any other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("gamma", self.gamma), ("gae_lambda", self.gae_lambda)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if self.loss_type not in LOSSES:
            raise ValueError(f"loss_type={self.loss_type} has one weight for a whole completion, PPO has one advantage for each "
                             f"token; choose from {', '.join(LOSSES)}")
        if self.importance_sampling_level != "token":
            raise ValueError(f"importance_sampling_level={self.importance_sampling_level} has one ratio for a whole completion, "
                             "PPO has one advantage for each token; leave it at token")
        if self.off_policy_mask_threshold is not None:
            raise ValueError("off_policy_mask_threshold drops whole completions by their one advantage, PPO has one for each "
                             "token; leave it at null")
        if self.scale_rewards != "group":
            raise ValueError(f"scale_rewards={self.scale_rewards} is about groups, which PPO does not compare; set "
                             "whiten_advantages")
        if self.world_size > 1:
            raise ValueError("PPO's value head is not reduced over processes; run it in one, or take grpo or rloo")


class PPOTrainer(GRPOTrainer):
    """`GRPOTrainer` whose advantages come from a value head; `args` is a `PPOConfig`."""

    args: PPOConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=model.device)
        # It begins at 0 everywhere, so that the first advantages are what was paid.
        for parameter in self.value_head.parameters():
            nn.init.zeros_(parameter)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        optimizer.add_param_group({"params": list(self.value_head.parameters()), "lr": self.args.value_learning_rate,
                                   "weight_decay": 0.0})
        # The trainer's loop empties the gradients of the model alone.
        optimizer.register_step_post_hook(lambda *_: self.value_head.zero_grad())
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        clip_grad_norm_(self.value_head.parameters(), self.args.max_grad_norm)
        return super()._clip_grad_norm(model)  # pyright: ignore[reportReturnType]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        by_function = super()._calculate_rewards(*args, **kwargs)
        self._paid_B = (by_function * self.reward_weights.to(by_function.device)).nansum(1)
        self._scored_B = ~by_function.isnan().all(1)
        return by_function

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        own_BT = _own_tokens(output) & self._scored_B.unsqueeze(1)
        values_BT = self._values(output)
        rewards_BT = at_last_own(self._paid_B, own_BT)
        advantages = gae(rewards_BT, values_BT, own_BT, self.args.gamma, self.args.gae_lambda)
        paid = rewards_to_go(rewards_BT, own_BT, self.args.gamma)
        self._metrics["train"]["value/explained_variance"].append(explained_variance(values_BT, paid, own_BT))
        self._metrics["train"]["value/mean"].append(float(values_BT[own_BT].mean()))
        output |= {"value_mask": own_BT.float(), "old_values": values_BT, "returns": advantages + values_BT}
        output["advantages"] = whitened(advantages, own_BT) if self.args.whiten_advantages else advantages
        return output

    @torch.no_grad()
    def _values(self, rows: dict[str, Any]) -> Tensor:
        """The values before each token of the completions, (B, T)."""
        ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1)
        mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1)
        size, backbone = self.args.per_device_train_batch_size, self.accelerator.unwrap_model(self.model).base_model
        values: list[Tensor] = []
        for start in range(0, len(ids), size):
            with self.accelerator.autocast():
                found = backbone(input_ids=ids[start:start + size], attention_mask=mask[start:start + size], use_cache=False)
            values.append(self._value(found.last_hidden_state, rows["completion_ids"].shape[1]))
        return torch.cat(values)

    def _value(self, states: Tensor, tokens: int) -> Tensor:
        """From the final hidden states (B, P + T, D) to (B, T): what is read before a token is chosen."""
        with torch.autocast(states.device.type, enabled=False):
            return self.value_head(states[:, -tokens - 1:-1].float()).squeeze(-1)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        with _final_states(self.accelerator.unwrap_model(model).base_model) as states:
            loss = super()._compute_loss(model, inputs)
        found = states[0].detach() if self.args.value_detach else states[0]
        values_BT = self._value(found, inputs["completion_ids"].shape[1])
        error = value_errors(values_BT, inputs["old_values"], inputs["returns"], self.args.value_clip)
        # The denominator of TRL's token-wise losses: all tokens of an accumulation window, so that rows do not mix.
        assert self.args.steps_per_generation is not None  # filled in by itself
        window = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        value_loss = (error * inputs["value_mask"]).sum() / (inputs["num_items_in_batch"].clamp(min=1) * window)
        self._metrics["train"]["value/loss"].append(value_loss.item() * self.current_gradient_accumulation_steps)
        return loss + self.args.value_coefficient * value_loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        save_file(self.value_head.state_dict(), folder / VALUE_HEAD)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            if not (Path(checkpoint) / VALUE_HEAD).exists():
                raise CheckpointError(f"{checkpoint} has no {VALUE_HEAD}: it is not of a run of PPO; start a new run")
            self.value_head.load_state_dict(load_file(Path(checkpoint) / VALUE_HEAD))
        super()._load_optimizer_and_scheduler(checkpoint)


def value_errors(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error; with `clip` the worse of the value and of the value that moved by at most `clip` from `old`."""
    error = (values - returns).square()
    if clip is not None:
        error = torch.maximum(error, (old + (values - old).clamp(-clip, clip) - returns).square())
    return 0.5 * error


def _own_tokens(rows: dict[str, Any]) -> Tensor:
    """Tokens that the model chose, (B, T) bool; an episode's `tool_mask` is 0 where its environment speaks."""
    mask = rows["completion_mask"] * rows["tool_mask"] if "tool_mask" in rows else rows["completion_mask"]
    return mask.bool()


@contextmanager
def _final_states(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the backbone gives out, (B, P + T, D), in each forward inside."""
    states: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda _module, _inputs, output: states.append(output.last_hidden_state))
    try:
        yield states
    finally:
        handle.remove()
