"""PPO's value head. It is the same in every process, and is separate from the model and from the model's optimizer, which may be
sharded. Not covered: optimizers that transformers makes for a certain model's parameters (GaLore, LOMO, layer-wise ones); a run
with such a `trainer.optim` is refused before it begins.

Shape letters: B rows, P tokens of a prompt, T tokens of a completion, D stream width."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from routed_rl.checkpoint import going_on_from
from routed_rl.errors import CheckpointError
from routed_rl.ranks import RANKS
from routed_rl.training.resuming import check_optimizer

VALUE_HEAD = "value_head.pt"
"""The file of a checkpoint that holds the value head and the state of the head's optimizer. Its form does not depend on the
number of processes."""


class ValueHead(nn.Linear):
    """Linear map from a final hidden state to one value. All values are 0 at first, so that the first advantages are the sums of
    rewards to come."""

    def __init__(self, width: int, device: torch.device, optimizer: Any, settings: dict[str, Any]) -> None:
        """`width`: the width of a hidden state. `optimizer`: the class of the head's optimizer, which is made with `settings` and
        without weight decay."""
        super().__init__(width, 1, device=device)
        self.optimizer = optimizer([{"params": list(self.parameters()), "weight_decay": 0.0}], **settings)
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()  # optimizers without a schedule step only in this mode

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def values(self, states: Tensor, tokens: int) -> Tensor:
        """Map the final hidden states (B, P + T, D) to the values (B, T) of a completion's T = `tokens` tokens. The value of a
        token comes from the state before the token."""
        with torch.autocast(states.device.type, enabled=False):
            return self(states[:, -tokens - 1:-1].float()).squeeze(-1)

    def average(self) -> None:
        """Replace the head's gradient by its mean over all processes. Each process scales its loss so that this mean is the
        gradient over the rows of all processes."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        RANKS.sum_(gradients)
        for gradient in gradients:
            gradient.div_(RANKS.count)

    def step(self, rate: float, limit: float) -> None:
        """Make one step of the optimizer at learning rate `rate`, with the gradient of all processes clipped to the norm `limit`
        (0: not clipped)."""
        self.average()
        if limit > 0:
            clip_grad_norm_(self.parameters(), limit)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, checkpoint: Path) -> None:
        """Save the head and its optimizer's state in the folder of a checkpoint. Only the first process calls this."""
        torch.save({"head": self.state_dict(), "optimizer": self.optimizer.state_dict()}, checkpoint / VALUE_HEAD)

    def load(self, checkpoint: Path) -> None:
        """Restore, in every process, what `save` wrote. CheckpointError if the checkpoint has no such file or the file does not
        fit this head."""
        if not (file := checkpoint / VALUE_HEAD).exists():
            raise CheckpointError(f"{checkpoint} has no {VALUE_HEAD}: another algorithm wrote it, or an older version of PPO; "
                                  "resume it with the version that its run's manifest.json names, or start a new run")
        with going_on_from(file):
            stored = torch.load(file, map_location="cpu", weights_only=True)
            self.load_state_dict(stored["head"])
            check_optimizer(self.optimizer, [parameter.shape for parameter in self.parameters()], stored["optimizer"])
            self.optimizer.load_state_dict(stored["optimizer"])
