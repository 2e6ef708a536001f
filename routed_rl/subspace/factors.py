"""Finds directions to which a map responds most, and chooses the few whose effects capture the most of a target direction. It
works on tensors and needs no model.

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
"""Differentiable function that maps pushes (F, D) to the change that each makes, (F, B, D), each row by itself."""
Split = Callable[[Tensor], Sequence[Tensor]]
"""Function that splits pushes into parts that are run together."""
Told = Callable[[int, int], None]
"""Function (done, in all) -> None, called after each iteration."""
RANGE, DRAWS, HALVINGS = (2.0**-7, 2.0**5), 30, 12
"""The smallest and the largest radius that is tried, in lengths of the stream; the number of random directions that are pushed;
and the number of bisections between two radii that differ by a factor of 2."""


@torch.no_grad()  # of parameters; torch.func differentiates by the pushes all the same
def exponential_factors(respond: Response, start_FD: Tensor, radius: float, iterations: int, split: Split,
                        told: Told | None = None) -> Tensor:
    """(F, D) unit directions, nearly orthogonal, each of which locally maximises the length of the mean response to a push of
    `radius`.

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
    """(F, D) leading right singular vectors of the mean Jacobian without a push, the strongest first, and their singular values
    (F,).

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
    """The smallest radius at which the responses to the unit directions `drawn_FD` depart from their linear part by the share
    `goal` of it, as the root mean square over directions and prompts. `norm` is the stream's length. SubspaceError if no radius
    that is tried does that."""
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
    """Choose `keep` factors one after another: each is the one whose addition to the chosen ones makes their span hold the most
    of the target's energy, as the mean over layers. Returns the factors, and the share of the energy after each. A layer at which
    the target is zero does not count."""
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
    """For each layer, the share of the target's energy within the span of the factors; None if the target is zero there."""
    units_LD = normalize(target_LD.double(), dim=1)
    return [(orthonormal(effects.double().mT).mT @ unit).square().sum().item() if unit.any() else None
            for effects, unit in zip(effects_LFD, units_LD, strict=True)]


def _mean(respond: Response, pushes_FD: Tensor) -> Tensor:
    return respond(pushes_FD).mean(1)
