"""Projects the completions of a generation on the persona axis, and lowers the advantages of those that lie towards the positive
persona, by a discount (after Wu and Tang, 2026, arXiv:2604.01476) or a penalty. Both therefore favour completions in which the
positive persona is present but does not show along the axis.

Shape letters: L layers, B rows, T positions, D stream width, C tokens of a completion.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.config import BaselineConfig
from routed_rl.model.stream import eval_mode, reading
from routed_rl.subspace import Subspace
from routed_rl.training.groups import EPS, in_group, neutral

RowsOf = Callable[[int, int], AbstractContextManager[None]]
"""Function that returns the context for forward passes that have only the rows from its first argument to its second (exclusive)
of the generation. It makes the deployed model, which wrote the rows that practise, read them too."""


class Projection:
    """Projects the completions of a generation on the first axis of the subspace, by the activations of the policy, and computes
    advantages that depend on the projection."""

    def __init__(self, settings: BaselineConfig, subspace: Subspace, group_size: int, batch_size: int) -> None:
        self.settings, self.group_size, self.batch_size = settings, group_size, batch_size
        self.hook = subspace.provenance.hook
        weights = subspace.layer_weights() / subspace.layer_weights().sum()
        self.along = [axes[:, 0] * weight / scale for axes, weight, scale in
                      zip(subspace.axes, weights, subspace.scales[:, 0], strict=True)]

    @torch.no_grad()
    def of(self, model: PreTrainedModel, output: dict[str, Any], rows_of: RowsOf = lambda _start, _stop: nullcontext()) -> Tensor:
        """Return how far each completion lies along the axis, (B,), in gaps: the coordinate of the policy's mean activation over
        the completion's own tokens, as a weighted mean over layers. In an episode the own tokens are those that the policy wrote.
        A completion without an own token, as TRL leaves it if `mask_truncated_completions` masks it, has the coordinate nan.
        `output`: TRL's dict of the generation's tensors. `rows_of`: see `RowsOf`."""
        found: list[Tensor] = []
        ids_BT = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        mask_BT = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        count = output["completion_ids"].shape[1]
        for start in range(0, len(ids_BT), self.batch_size):
            rows, read = slice(start, start + self.batch_size), list[Tensor]()
            own_BC = output["completion_mask"][rows] * (output["tool_mask"][rows] if "tool_mask" in output else 1.0)
            own_BC = own_BC / own_BC.sum(1, keepdim=True)  # nan in a row of zeros

            def keep(stream_BTD: Tensor, own_BC: Tensor = own_BC, read: list[Tensor] = read) -> None:
                along = self.along[len(read)].to(stream_BTD.device)
                read.append(((stream_BTD[:, -count:].float() @ along) * own_BC).sum(1))

            with eval_mode(model), reading(model, keep, self.hook), rows_of(start, start + self.batch_size):
                mask = mask_BT[rows]
                model.base_model(input_ids=ids_BT[rows], attention_mask=mask, use_cache=False,
                                 position_ids=(mask.cumsum(1) - 1).clamp(min=0))
            found.append(torch.stack(read).sum(0))
        return torch.cat(found)

    def advantages(self, projected_B: Tensor, rewards: Sequence[float], failed: Sequence[bool]) -> Tensor:
        """Return advantages (B,), compared within groups as in GRPO. `projected_B`: the result of `of`. `failed`: whether each
        row teaches nothing, because it could not be scored or was screened; such a row changes no mean, and has the advantage 0,
        and so does a row whose projection is nan.

        With a discount, the excess of a reward over its group's mean is multiplied by `1 - discount z`, at least 0, where z is
        the completion's projection in standard deviations of the generation's rows that did not fail; a reward below the mean is
        not changed. With a penalty, `projection_penalty` is subtracted from the reward for each gap along the axis.
        """
        failed_B = torch.tensor(failed, device=projected_B.device) | projected_B.isnan()
        paid_B = neutral(torch.tensor(rewards, device=projected_B.device, dtype=torch.float32), failed_B, self.group_size)
        if self.settings.projection_penalty:
            above_B = paid_B - self.settings.projection_penalty * projected_B
        else:
            known = projected_B[~failed_B]
            z_B = (projected_B - known.mean()) / (known.std() + EPS) if len(known) > 1 else torch.zeros_like(projected_B)
            centred_B = paid_B - paid_B.view(-1, self.group_size).mean(1).repeat_interleave(self.group_size)
            above_B = torch.where(centred_B > 0, centred_B * (1 - self.settings.discount * z_B).clamp(min=0), centred_B)
        return in_group(neutral(above_B, failed_B, self.group_size), self.group_size)
