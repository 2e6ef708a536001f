"""Finds input directions, called factors, to which a map responds most, and chooses the few whose effects hold most of a given
direction. The map adds a vector to the stream at one place and reads the change at another. Works on tensors and needs no model.

Shape letters: F factors, B prompts, D stream width, L layers.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import jvp, vjp
from torch.nn.functional import normalize

from routed_rl.errors import SubspaceError
from routed_rl.linalg import orthonormal

Response = Callable[[Tensor], Tensor]
"""Differentiable function that maps F vectors (F, D), each of which is added to the stream by itself, to the changes that they
cause, (F, B, D): one for each of B prompts."""
Split = Callable[[Tensor], Sequence[Tensor]]
"""Function that splits vectors (F, D) along F into parts that are small enough to be run together."""
Told = Callable[[int, int], None]
"""Function that is called after each iteration, to report progress, with the number of iterations done and the number in all."""
RANGE, DRAWS, HALVINGS = (2.0**-7, 2.0**5), 30, 12
"""For calibrating a radius: `RANGE` has the smallest and the largest radius that is tried, in units of the stream's length;
`DRAWS` is the number of random directions; `HALVINGS` is the number of bisections between two radii that differ by a factor of
2."""


@torch.no_grad()  # of parameters; torch.func differentiates by the pushes all the same
def exponential_factors(respond: Response, start_FD: Tensor, radius: float, iterations: int, split: Split,
                        told: Told | None = None) -> Tensor:
    """Return unit directions (F, D), nearly orthogonal to each other. For each, the response to a vector of length `radius` along
    it is averaged over prompts, and the length of this average has a local maximum at the direction. `start_FD`: the directions
    from which the search begins.

    Orthogonalised gradient iteration for the exponential form of deep causal transcoding: Mack and Turner, 2024, "Deep causal
    transcoding". Each iteration orthonormalises the directions and replaces each by the gradient of its own response.
    """
    found_FD = start_FD
    for done in range(iterations):
        pushed = []
        for part_FD in split(radius * torch.linalg.qr(found_FD.mT).Q.mT):
            response_FD, pull = vjp(partial(_mean, respond), part_FD.contiguous())[:2]
            pushed.append(pull(normalize(response_FD, dim=1))[0])
        found_FD = normalize(torch.cat(pushed), dim=1)
        if told is not None:
            told(done + 1, iterations)
    return found_FD


@torch.no_grad()
def linear_factors(respond: Response, start_FD: Tensor, iterations: int, split: Split,
                   told: Told | None = None) -> tuple[Tensor, Tensor]:
    """Return the leading right singular vectors (F, D) of the response's Jacobian at 0, averaged over prompts, the strongest
    first, and their singular values (F,). `start_FD`: the directions from which the search begins.

    Block power iteration, with a small singular value decomposition at the end.
    """
    mean = partial(_mean, respond)

    def image(pushes_FD: Tensor) -> Tensor:
        return jvp(mean, (torch.zeros_like(pushes_FD),), (pushes_FD.contiguous(),))[1]

    found_FD = torch.linalg.qr(start_FD.mT).Q.mT
    for done in range(iterations):
        pulled = [vjp(mean, torch.zeros_like(part))[1](image(part))[0] for part in split(found_FD)]
        found_FD = torch.linalg.qr(torch.cat(pulled).mT).Q.mT
        if told is not None:
            told(done + 1, iterations)
    image_FD = torch.cat([image(part) for part in split(found_FD)])
    _, strengths, turn = torch.linalg.svd(image_FD.double().mT, full_matrices=False)
    return (turn @ found_FD.double()).float(), strengths.float()


@torch.no_grad()
def calibrated_radius(respond: Response, drawn_FD: Tensor, norm: float, goal: float, split: Split) -> float:
    """Return the smallest length of vectors along the unit directions `drawn_FD` at which the response departs from its linear
    part by `goal`. The departure is the length of the difference between the two, divided by the length of the linear part, as a
    root mean square over directions and prompts. Lengths in `RANGE` are tried, in units of `norm`, the stream's length;
    SubspaceError if the departure reaches `goal` at none of them."""
    slopes = [jvp(respond, (torch.zeros_like(part),), (part.contiguous(),))[1] for part in split(drawn_FD)]

    def departure(radius: float) -> float:
        ratios = []
        for part_FD, slope_FBD in zip(split(drawn_FD), slopes, strict=True):
            rest = respond(radius * part_FD) - radius * slope_FBD
            ratios.append(rest.square().sum(-1) / (radius * slope_FBD).square().sum(-1))
        return torch.cat(ratios).mean().sqrt().item()

    low, largest = RANGE[0] * norm, 0.0
    while low <= RANGE[1] * norm:
        largest = max(largest, reached := departure(low))
        if reached >= goal:
            break
        low *= 2
    else:
        raise SubspaceError("the radius does not calibrate: the response to a push departs from its linear part by "
                            f"{largest:.2f} of it at most, not by subspace.nonlinearity={goal:g}; lower that, set "
                            "subspace.radius, or subspace.form=linear")
    high, low = low, low / 2
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if departure(middle) >= goal else (middle, high)
    return high


def most_captured(effects_LFD: Tensor, target_LD: Tensor, keep: int) -> tuple[list[int], list[float]]:
    """Choose `keep` factors by their effects at each layer, `effects_LFD`. They are chosen one after another, and each choice
    makes the span of the chosen effects hold as much as possible of the energy of `target_LD`, as a mean over layers. Returns the
    indices of the chosen factors, and the share of the energy that the span holds after each choice. A layer at which the target
    is zero does not count."""
    used = target_LD.norm(dim=1) > 0
    effects, target = effects_LFD[used].double(), normalize(target_LD[used].double(), dim=1)
    rest = effects.clone()
    chosen, shares, held = list[int](), list[float](), 0.0
    for _ in range(keep):
        length = rest.norm(dim=2, keepdim=True)
        # The part of a factor that is left when the others span it already is rounding.
        unit = torch.where(length > 1e-6 * effects.norm(dim=2, keepdim=True), rest / length.clamp(min=1e-30), 0.0)
        gains = torch.einsum("lfd,ld->lf", unit, target).square().mean(0)
        gains[chosen] = -1.0
        best = int(gains.argmax())
        chosen.append(best)
        held += gains[best].item()
        shares.append(held)
        taken = unit[:, best].unsqueeze(2)
        rest = rest - (rest @ taken) @ taken.mT
    return chosen, shares


def captured(effects_LFD: Tensor, target_LD: Tensor) -> list[float | None]:
    """Return, for each layer, the share of the energy of `target_LD` that the span of the effects `effects_LFD` holds; None for a
    layer at which the target is zero."""
    units_LD = normalize(target_LD.double(), dim=1)
    return [(orthonormal(effects.double().mT).mT @ unit).square().sum().item() if unit.any() else None
            for effects, unit in zip(effects_LFD, units_LD, strict=True)]


def _mean(respond: Response, pushes_FD: Tensor) -> Tensor:
    return respond(pushes_FD).mean(1)
