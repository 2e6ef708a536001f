"""The names of writers in a checkpoint's files, found by transformers' own conversions, some of which split mixtures or rename
parts."""

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from routed_rl.errors import ModelError

Place = tuple[str, int | None]
"""The name of a tensor in the files, and the index of a slice of it; None for all of it."""


def names_in_files(model: PreTrainedModel, writer: str, *, mixture: bool) -> list[Place]:
    """The places of a writer's weight in the files, or for a `mixture` those of every expert's weight in turn. ModelError if the
    files store it in another shape."""
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
