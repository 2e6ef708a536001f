"""Generalised advantage estimation over the tokens that a model generated itself (Schulman et al. 2016, arXiv:1506.02438).

Shape letters: B rows, T tokens of a completion. A row's own tokens are those that the model generated. Text between them (an
environment's answer, a tool's output) is no action: the state that follows an own token is that of the next own token, and there
is no discount in between. `own_BT` is True at own tokens in all functions here.
"""

import torch
from torch import Tensor

from routed_rl.ranks import RANKS


def gae(rewards_BT: Tensor, values_BT: Tensor, own_BT: Tensor, gamma: float, lam: float) -> Tensor:
    """Return the advantage of each own token, (B, T), with 0 at other tokens. `rewards_BT`, `values_BT`: reward and value at each
    own token; entries at other tokens are ignored. `gamma`, `lam`: the discount γ and the λ of the estimator.

    The advantage at an own token t is `A_t = δ_t + γλ A_next` with `δ_t = r_t + γ V_next - V_t`, where "next" is the row's next
    own token. After the last one, A and V are 0.
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
    """Return the sum of rewards from each own token on, discounted by `gamma` for each own token in between, (B, T)."""
    return gae(rewards_BT, torch.zeros_like(rewards_BT), own_BT, gamma, 1.0)


def at_last_own(rewards_B: Tensor, own_BT: Tensor) -> Tensor:
    """Place each row's reward at the row's last own token, with 0 at all other tokens, (B, T). A row without own tokens is all
    0."""
    remaining = own_BT.flip(1).cumsum(1).flip(1)
    return (own_BT & (remaining == 1)) * rewards_B.unsqueeze(1)


def moments(values_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number, the mean (nan if there are no values) and the unbiased variance of the values of all processes together,
    float64. Every process must call this, with its own `values_N`."""
    values_N = values_N.double()
    sums = torch.stack([values_N.new_tensor(len(values_N)), values_N.sum()])
    RANKS.sum_([sums])
    count, mean = sums[0], sums[1] / sums[0]
    square = (values_N - mean).square().sum()
    RANKS.sum_([square])
    return count, mean, square / (count - 1)


def whitened(advantages_BT: Tensor, own_BT: Tensor) -> Tensor:
    """Shift and scale advantages to mean 0 and standard deviation 1 over the own tokens of all processes. Other tokens get 0. If
    there are fewer than two own tokens, the advantages are returned as they are."""
    count, mean, variance = moments(advantages_BT[own_BT])
    if count < 2:
        return advantages_BT
    return torch.where(own_BT, (advantages_BT - mean) / (variance.sqrt() + 1e-8), 0.0)


def explained_variance(values_BT: Tensor, targets_BT: Tensor, own_BT: Tensor) -> float:
    """Return how much of the variance of `targets_BT` the values explain, 1 - Var(target - value) / Var(target), over the own
    tokens of all processes; nan if the targets do not vary."""
    values, targets = values_BT[own_BT], targets_BT[own_BT]
    spread, rest = moments(targets)[2], moments(targets - values)[2]
    return float(1 - rest / spread) if spread > 0 else float("nan")
