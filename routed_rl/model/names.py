"""Finds the names that writers have in a model's files of weights, by transformers' own conversions. Some of these split the
fused weights of a mixture of experts, or rename modules."""

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from routed_rl.errors import ModelError

Place = tuple[str, int | None]
"""The place of a weight in the files: the name of a tensor, and the index of a slice of this tensor (None for the whole
tensor)."""


def names_in_files(model: PreTrainedModel, writer: str, *, mixture: bool) -> list[Place]:
    """Return the places of the weights of `writer`, a module of the model, in the files. `mixture`: whether the module is a
    mixture. If so, the list has the place of every expert's weight in turn; otherwise it has one entry. ModelError if the files
    store a weight in another shape than the model."""
    parameter = f"{writer}.down_proj" if mixture else f"{writer}.weight"
    weight = model.get_parameter(parameter)
    shape = tuple(getattr(weight, "ds_shape", weight.shape))
    found = revert_weight_conversion(model, {parameter: torch.empty(shape, device="meta")})
    shapes = {tuple(tensor.shape) for tensor in found.values()}
    if len(found) == 1 and shapes == {shape}:
        name = next(iter(found))
        return [(name, expert) for expert in range(shape[0])] if mixture else [(name, None)]
    if mixture and len(found) == shape[0] and shapes == {shape[1:]}:
        return [(name, None) for name in found]
    raise ModelError(f"checkpoints keep {parameter} in another shape, as {', '.join(list(found)[:2])}")
