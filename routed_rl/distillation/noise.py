"""The student's initial weights in UNDO (Lee et al., 2025, arXiv:2506.06278): the teacher's weights, shrunk, plus noise."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def xavier(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw the uniform noise of Glorot and Bengio (2010) for a matrix, or for each matrix of a stack. The noise of a vector is
    zero."""
    if len(shape) < 2:
        return torch.zeros(shape)
    bound = math.sqrt(6 / (shape[-1] + shape[-2]))
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


@torch.no_grad()
def add_noise(parameters: Mapping[str, nn.Parameter], alpha: float, beta: float, seed: int) -> None:
    """Set each parameter in place to `(1 - alpha) W + alpha beta N`, where W is its value and N is Xavier-uniform noise. The
    noise of a parameter depends only on the seed and on its position in the mapping. `parameters` must have a tied weight only
    once, as `named_parameters` does; otherwise it is changed twice."""
    for place, parameter in enumerate(parameters.values()):
        noise = xavier(parameter.shape, torch.Generator().manual_seed(seed * 2**20 + place))
        parameter.mul_(1 - alpha).add_((alpha * beta * noise).to(parameter))
