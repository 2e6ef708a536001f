"""PPO (arXiv:1707.06347) on TRL's GRPO machinery: a linear value head on the policy's stream, and an advantage for each token.
The policy's loss, its clipping, inner epochs (`num_iterations`) and the KL to the reference are TRL's. The head is no part of the
model: it is not routed, not deployed, and not sent to an engine. Several processes give the same result as one process with the
same rows.

Shape letters: B rows, P tokens of a prompt, T tokens of a completion, D stream width."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from routed_rl.model.adapter import plain
from routed_rl.ranks import RANKS
from routed_rl.training.fields import BY_TOKEN
from routed_rl.training.gae import at_last_own, explained_variance, gae, moments, rewards_to_go, whitened
from routed_rl.training.value import ValueHead


@dataclass
class PPOConfig(GRPOConfig):
    """GRPO's settings and those of the value head. Settings of GRPO that are about advantages within groups are refused."""

    gamma: float = 1.0
    """The discount factor γ: a reward that is n own tokens later is multiplied by γ to the power n."""
    gae_lambda: float = 0.95
    """The λ of generalised advantage estimation, from 0 to 1. 0: the advantage is the one-step error of the value head; 1: it is
    the sum of the rewards to come, minus the value."""
    whiten_advantages: bool = True
    """Whether advantages are shifted and scaled to mean 0 and standard deviation 1 over the own tokens of a generation."""
    value_learning_rate: float = 3e-3
    """Learning rate of the value head. It follows the schedule of `learning_rate`, or is constant if `learning_rate` is 0. 0
    freezes the head."""
    value_coefficient: float = 0.5
    """Weight of the value head's loss, relative to the policy's loss."""
    value_clip: float | None = 0.2
    """How far a token's value may move, in units of the reward, from the value that the head gave when the completions were made.
    A larger move does not lower the loss further; null: no bound."""
    value_detach: bool = True
    """Whether the value head's loss trains the head alone. false: the loss trains the model too, and its gradient is routed like
    any other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_type not in BY_TOKEN:
            raise ValueError(f"loss_type={self.loss_type} has one weight for a whole completion, but PPO has one advantage for "
                             f"each token; choose from {', '.join(BY_TOKEN)}")
        if self.importance_sampling_level != "token":
            raise ValueError(f"importance_sampling_level={self.importance_sampling_level} has one ratio for a whole completion, "
                             "but PPO has one advantage for each token; leave it at token")
        if self.off_policy_mask_threshold is not None:
            raise ValueError("off_policy_mask_threshold drops whole completions by their one advantage, but PPO has one for "
                             "each token; leave it at null")
        if self.scale_rewards != "group":
            raise ValueError(f"scale_rewards={self.scale_rewards} is about groups, which PPO does not compare; set "
                             "whiten_advantages")


class PPOTrainer(GRPOTrainer):
    """A `GRPOTrainer` whose advantages come from a value head. It takes the same arguments; `args` must be a `PPOConfig`."""

    args: PPOConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.value_head = ValueHead(model.config.get_text_config().hidden_size, self.accelerator.device, kind, settings)
        self.add_callback(ValueCallback(self))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint:
            self.value_head.load(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def step_value(self) -> None:
        """Make a step of the value head. Must be called after the model's optimizer has stepped and before the learning rate has
        moved on in its schedule."""
        optimizer: Any = self.optimizer
        now, whole = optimizer.param_groups[0]["lr"], self.args.learning_rate
        self.value_head.step(self.args.value_learning_rate * (now / whole if whole else 1.0), self.args.max_grad_norm)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        by_function = super()._calculate_rewards(*args, **kwargs)
        own = by_function.chunk(RANKS.count)[RANKS.rank]  # TRL has gathered the rewards of all processes
        self._paid_B = (own * self.reward_weights.to(own.device)).nansum(1)
        self._scored_B = ~own.isnan().all(1)
        return by_function

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        own_BT = _own_tokens(output) & self._scored_B.unsqueeze(1)
        values_BT = self._values(output)
        rewards_BT = at_last_own(self._paid_B, own_BT)
        advantages = gae(rewards_BT, values_BT, own_BT, self.args.gamma, self.args.gae_lambda)
        paid = rewards_to_go(rewards_BT, own_BT, self.args.gamma)
        self._metrics["train"]["value/explained_variance"].append(explained_variance(values_BT, paid, own_BT))
        self._metrics["train"]["value/mean"].append(float(moments(values_BT[own_BT])[1]))
        output |= {"value_mask": own_BT.float(), "old_values": values_BT, "returns": advantages + values_BT}
        output["advantages"] = whitened(advantages, own_BT) if self.args.whiten_advantages else advantages
        return output

    @torch.no_grad()
    def _values(self, rows: dict[str, Any]) -> Tensor:
        """Return the value of each token of the completions, (B, T): the head's output for the state before the token."""
        ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1)
        mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1)
        model, values, size = cast(Any, self.model), list[Tensor](), self.args.per_device_train_batch_size
        for start, some, seen in zip(range(0, len(ids), size), ids.split(size), mask.split(size), strict=True):
            # Calls the whole model, because a backend that shards it has its hooks there.
            with (_final_states(self.accelerator.unwrap_model(model)) as states, self.accelerator.autocast(),
                  self.rows_of(start, start + size)):
                model(input_ids=some, attention_mask=seen, use_cache=False, logits_to_keep=1)
            values.append(self.value_head.values(states[0], rows["completion_ids"].shape[1]))
        return torch.cat(values)

    def rows_of(self, start: int, stop: int) -> AbstractContextManager[None]:
        """Context for forward passes that have only the rows `start` to `stop` (exclusive) of the generation. Does nothing here;
        subclasses whose rows are not all treated alike override it."""
        return nullcontext()

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        with _final_states(self.accelerator.unwrap_model(model)) as states:
            loss = super()._compute_loss(model, inputs)
        found = states[0].detach() if self.args.value_detach else states[0]
        values_BT = self.value_head.values(found, inputs["completion_ids"].shape[1])
        error = value_errors(values_BT, inputs["old_values"], inputs["returns"], self.args.value_clip)
        # The denominator of TRL's token-wise losses: all tokens of an accumulation window, so that rows do not mix. It counts the
        # tokens of all processes, divided by the number of processes, since the processes' gradients are averaged.
        assert self.args.steps_per_generation is not None  # TRL's config fills it in
        window = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        value_loss = (error * inputs["value_mask"]).sum() / (inputs["num_items_in_batch"].clamp(min=1) / RANKS.count * window)
        RANKS.sum_([everyones := value_loss.detach().clone()])
        self._metrics["train"]["value/loss"].append(everyones.item() / RANKS.count * self.current_gradient_accumulation_steps)
        return loss + self.args.value_coefficient * value_loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if RANKS.rank == 0:
            self.value_head.save(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")


class ValueCallback(TrainerCallback):
    """Makes the value head's step right after the model's optimizer has stepped."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.step_value()


def value_errors(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Return half the squared error of `values` against `returns`, entry by entry. If `clip` is not None, an entry is at least
    the error that the value would have if it had moved from `old` by at most `clip`."""
    error = (values - returns).square()
    if clip is not None:
        error = torch.maximum(error, (old + (values - old).clamp(-clip, clip) - returns).square())
    return 0.5 * error


def _own_tokens(rows: dict[str, Any]) -> Tensor:
    """Return which tokens of the completions are own tokens, (B, T) bool. In an episode `tool_mask` is 0 at all other tokens."""
    mask = rows["completion_mask"] * rows["tool_mask"] if "tool_mask" in rows else rows["completion_mask"]
    return mask.bool()


@contextmanager
def _final_states(model: Any) -> Iterator[list[Tensor]]:
    """Context that yields a list, to which each forward pass inside adds the output of the model's backbone, (B, P + T, D)."""
    states: list[Tensor] = []
    backbone = plain(model).base_model
    with backbone.register_forward_hook(lambda _module, _inputs, output: states.append(output.last_hidden_state)):
        yield states
