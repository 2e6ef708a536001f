"""Generalised advantage estimation over the tokens that a model generated itself (Schulman et al. 2016, arXiv:1506.02438).

Shape letters: B rows, T tokens of a completion. A row's own tokens are those that the model generated. Text between them (an
environment's answer, a tool's output) is no action: the next state of a token is that of the next own token, and there is no
discount in between.
"""

import torch
from torch import Tensor

from routed_rl.ranks import RANKS


def gae(rewards_BT: Tensor, values_BT: Tensor, own_BT: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages (B, T), 0 where `own_BT` (bool) is False. The other two tensors are not read there.

    `A_t = δ_t + γλ A_next`, `δ_t = r_t + γ V_next - V_t`; after a row's last own token there is no next value.
    """
    carry, following = torch.zeros_like(values_BT[:, 0]), torch.zeros_like(values_BT[:, 0])
    advantages = torch.zeros_like(values_BT)
    for t in reversed(range(values_BT.shape[1])):
        value, own = values_BT[:, t], own_BT[:, t]
        here = rewards_BT[:, t] + gamma * following - value + gamma * lam * carry
        carry, following = torch.where(own, here, carry), torch.where(own, value, following)
        advantages[:, t] = torch.where(own, here, 0.0)
    return advantages


def rewards_to_go(rewards_BT: Tensor, own_BT: Tensor, gamma: float) -> Tensor:
    """The discounted sum of rewards from each own token on, (B, T), which the value head learns to predict."""
    return gae(rewards_BT, torch.zeros_like(rewards_BT), own_BT, gamma, 1.0)


def at_last_own(rewards_B: Tensor, own_BT: Tensor) -> Tensor:
    """Each row's reward, placed at the row's last own token, (B, T). A row without own tokens gets no reward."""
    remaining = own_BT.flip(1).cumsum(1).flip(1)
    return (own_BT & (remaining == 1)) * rewards_B.unsqueeze(1)


def moments(values_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The number, the mean (nan for no values) and the unbiased variance of the `values_N` of all processes, float64. Every
    process must call it."""
    values_N = values_N.double()
    sums = torch.stack([values_N.new_tensor(len(values_N)), values_N.sum()])
    RANKS.sum_([sums])
    count, mean = sums[0], sums[1] / sums[0]
    square = (values_N - mean).square().sum()
    RANKS.sum_([square])
    return count, mean, square / (count - 1)


def whitened(advantages_BT: Tensor, own_BT: Tensor) -> Tensor:
    """Scale advantages to mean 0 and deviation 1 over the own tokens of all processes; 0 elsewhere."""
    count, mean, variance = moments(advantages_BT[own_BT])
    if count < 2:
        return advantages_BT
    return torch.where(own_BT, (advantages_BT - mean) / (variance.sqrt() + 1e-8), 0.0)


def explained_variance(values_BT: Tensor, targets_BT: Tensor, own_BT: Tensor) -> float:
    """1 - Var(target - value) / Var(target) over the own tokens of all processes; nan if the target does not vary."""
    values, targets = values_BT[own_BT], targets_BT[own_BT]
    spread, rest = moments(targets)[2], moments(targets - values)[2]
    return float(1 - rest / spread) if spread > 0 else float("nan")
