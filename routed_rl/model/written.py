"""Finds the writers of one layer in the layer's trace. Each writer adds its output to the stream directly, times a constant, or
behind a root-mean-square norm. Together the writers must account, to rounding, for all that the layer adds to the stream; any
other layer is refused. Not covered: norms and gates over several writers, gates by token, trainable scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from routed_rl.errors import ModelError
from routed_rl.model.traces import Cut, LayerTrace, is_mixture, is_rounding
from routed_rl.routing.experts import mix


@dataclass(frozen=True)
class Found:
    """A writer in one layer, as the layer's trace shows it. `eps` is the eps of the norm in `norm`; None if there is no norm."""

    name: str
    module: nn.Module
    scale: float
    """The constant by which the writer's output is multiplied before it is added to the stream."""
    norm: str | None
    """The name of the norm between the writer and the stream; None if there is no norm."""
    offset: float
    """The number that the norm adds to its weight to get the gain."""
    eps: float | None
    adds_BTD: Tensor
    """The tensor that the writer adds to the stream."""
    active: int | None
    """The number of experts that a token goes through; None if the writer is no mixture."""


def writers_in(layer: LayerTrace, name: str, given: Sequence[str]) -> list[Found]:
    """Return the writers of one layer, in the order in which they are called. `name`: the layer's name, for messages. `given`:
    names of the writers that the user has named; may be empty. ModelError if the layer's output cannot be explained by
    writers."""
    if layer.parameters:
        more = f" and {len(layer.parameters) - 3} more" if len(layer.parameters) > 3 else ""
        raise ModelError(f"in {name} the parameters {', '.join(layer.parameters[:3])}{more} change the stream other than through "
                         f"{'these writers' if given else 'linear modules that add to it'}")
    gradient = layer.gradient_BTD
    if gradient is None or not is_rounding(gradient - layer.towards_BTD, layer.towards_BTD, gradient):
        raise ModelError(f"{name} does not only add to the stream: it scales, mixes or normalises it")
    found = [_writer(layer, source, cut, name) for source, cut in _sources(layer, name)]
    if not found:
        raise ModelError(f"no linear module of {name} writes to the stream")
    rest = layer.out_BTD - layer.into_BTD.detach() - torch.stack([each.adds_BTD for each in found]).sum(0)
    if not is_rounding(rest, layer.out_BTD, layer.into_BTD, *(each.adds_BTD for each in found)):
        raise ModelError(f"in {name} {', '.join(each.name for each in found)} do not add up to what the layer adds to the stream")
    idle = [cut.name for cut in layer.cuts if cut.name in given and cut.name not in {each.name for each in found}]
    if idle:
        raise ModelError(f"{idle[0]} in {name} does not write to the stream")
    return found


def require_no_dropout(layer: LayerTrace, found: list[Found], name: str) -> None:
    """ModelError if there is dropout between a writer and the stream. `layer`: the layer's trace in training mode. `found`: its
    writers. `name`: the layer's name, for messages."""
    towards, gradients = layer.towards_BTD, {cut.name: cut.gradient for cut in layer.cuts}
    for writer in found:
        gradient = gradients.get(writer.norm or writer.name)
        if gradient is None or not is_rounding(gradient.reshape(towards.shape) - writer.scale * towards, writer.scale * towards,
                                               gradient):
            raise ModelError(f"in training {name} drops out, or changes, what its writer {writer.name} adds to the stream, so no "
                             "basis holds: set trainer.disable_dropout=true, or save the model with dropout 0 in its config")


def _sources(layer: LayerTrace, name: str) -> list[tuple[Cut, Cut]]:
    """Return each module whose output reaches the stream, paired with the last cut between it and the stream: the module's own,
    or that of a norm behind the module."""
    pairs: list[tuple[Cut, Cut]] = []
    for cut in layer.cuts:
        if cut.gradient is None or not cut.gradient.any():
            continue
        source = cut
        while (before := next((each for each in layer.cuts if each is not source and each.is_read_by(source.inputs)
                               and "Norm" in type(source.module).__name__), None)) is not None:
            source = before
        if twice := [other.name for one, other in pairs if one is source]:
            raise ModelError(f"{name}.{source.name} reaches the stream in two ways, by {cut.name} and {twice[0]}")
        pairs.append((source, cut))
    return pairs


def _writer(layer: LayerTrace, source: Cut, cut: Cut, name: str) -> Found:
    """Describe one writer. `source`: the cut behind its module. `cut`: the cut behind the norm that follows, or `source` again if
    there is no norm. `name`: the layer's name, for messages. ModelError if the writer cannot be routed."""
    full, towards, gradient = f"{name}.{source.name}", layer.towards_BTD, cut.gradient
    assert gradient is not None
    if source.calls > 1 or cut.calls > 1:
        raise ModelError(f"{full} runs {max(source.calls, cut.calls)} times in a forward")
    if gradient.numel() != towards.numel():
        raise ModelError(f"{full} is not given every token once")
    gradient = gradient.reshape(towards.shape)
    scale = float((gradient / towards).median())
    if is_rounding(gradient - towards, towards, gradient):
        scale = 1.0
    if not is_rounding(gradient - scale * towards, scale * towards, gradient):
        raise ModelError(f"the output of {full} reaches the stream multiplied by something that is not constant, such as a gate")
    _require_linear(source, full)
    active = source.inputs[1].shape[-1] if is_mixture(source.module) else None
    adds_BTD = scale * cut.output.detach().reshape(towards.shape)
    if cut is source:
        return Found(source.name, source.module, scale, None, 0.0, None, adds_BTD, active)
    if active or scale != 1:
        raise ModelError(f"the norm {cut.name} stands between {full} and the stream, and it "
                         f"{'is a mixture' if active else 'is scaled'}")
    offset, eps = _gain_of(source, cut, full)
    return Found(source.name, source.module, 1.0, cut.name, offset, eps, adds_BTD, None)


@torch.no_grad()
def _require_linear(cut: Cut, name: str) -> None:
    """ModelError if the output at `cut` is neither a product with the module's weight nor the output of a mixture of gated
    experts."""
    module, inputs = cut.module, cut.inputs
    if is_mixture(module):
        fits = {key for key, _ in module.named_parameters()} == {"gate_up_proj", "down_proj"} and hasattr(module, "act_fn")
        fits = fits and len(inputs) == 3 and inputs[0].dim() == 2 and module.gate_up_proj.shape == (  # pyright: ignore
            len(module.down_proj), 2 * module.down_proj.shape[2], module.down_proj.shape[1])  # pyright: ignore
        if not fits or not is_rounding(mix(module, *inputs)[0] - cut.output, cut.output):
            raise ModelError(f"{name} are no gated experts without biases, weighted behind their output")
        return
    weight, bias, x = module.weight, getattr(module, "bias", None), inputs[0]
    assert isinstance(weight, Tensor)
    fits = x.dim() in (2, 3) and x.shape[:-1] == cut.output.shape[:-1]
    y = linear(x, weight.mT if isinstance(module, Conv1D) else weight, bias) if fits else None
    if y is None or not is_rounding(y - cut.output, cut.output):
        raise ModelError(f"the output of {name} is no product of its weight")


def _gain_of(source: Cut, norm: Cut, name: str) -> tuple[float, float]:
    """Return the number that the norm behind a writer adds to its weight, and the norm's eps. `source`, `norm`: the cuts behind
    the writer and behind the norm. `name`: the writer's name, for messages. ModelError if the norm is no root-mean-square norm
    with a gain."""
    weight, y = getattr(norm.module, "weight", None), source.output.detach().reshape(norm.output.shape)
    eps = next((float(getattr(norm.module, key)) for key in ("variance_epsilon", "eps") if hasattr(norm.module, key)), None)
    if isinstance(weight, Tensor) and eps is not None and getattr(norm.module, "bias", None) is None:
        normed = y.float() * torch.rsqrt(y.float().square().mean(-1, keepdim=True) + eps)
        for offset in (0.0, 1.0):
            if is_rounding(norm.output - (normed * (weight.detach() + offset)).to(y.dtype), norm.output):
                return offset, eps
    raise ModelError(f"{norm.name}, a {type(norm.module).__name__}, stands between {name} and the stream, and only norms by the "
                     "root mean square with a gain can be undone")
