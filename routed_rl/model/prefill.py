"""Computes a prompt once for all rows of a generation that share it. A group of completions has one prompt, so that the forward
pass over the prompts, which begins a generation, would compute the same states once for each completion.

Shape letters: B rows of a generation, U rows with different prompts, T tokens of the longest prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from routed_rl.routing import RoutingContext

OF_ROWS = ("input_ids", "attention_mask", "position_ids")
"""Inputs of a forward pass that have one entry for each row."""


@contextmanager
def sharing_prompts(model: nn.Module, context: RoutingContext | None = None) -> Iterator[None]:
    """Inside the block, the first forward pass of the transformers model `model` runs each different prompt once. Its logits, and
    the keys and values that it leaves in the cache, are copied to all rows that have the prompt. The block is to hold one call of
    `model.generate`. `context`: the context of a routed model; rows that practise share nothing with rows that do not.

    Nothing is shared where it would change what is computed, or where this is not known: with dropout, with a cache other than
    transformers' dynamic one, in a model that keeps states outside of the cache, and with inputs other than tokens.
    """
    places_B: Tensor | None = None
    before = None if context is None else context.now.practising_B

    def narrow(_module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        nonlocal places_B
        first.remove()
        if args or not _is_plain(inputs):
            return None
        parts = [inputs["input_ids"], inputs.get("attention_mask"), None if before is None else before.unsqueeze(1)]
        rows_U, found_B = different_rows(torch.cat([part.long() for part in parts if part is not None], dim=1))
        if len(rows_U) == len(found_B):
            return None
        places_B = found_B
        if context is not None and before is not None:
            context.change(practising_B=before[rows_U])
        count = len(places_B)
        return args, {name: value[rows_U] if name in OF_ROWS and value is not None and len(value) == count else value
                      for name, value in inputs.items()}

    def widen(_module: nn.Module, _args: Any, inputs: dict[str, Any], output: Any) -> None:
        last.remove()
        if places_B is None:
            return
        output.logits = output.logits[places_B]
        inputs["past_key_values"].reorder_cache(places_B)
        if context is not None:
            context.change(practising_B=before)

    if keeps_states(model) or drops_out(model):
        yield
        return
    first = model.register_forward_pre_hook(narrow, with_kwargs=True)
    last = model.register_forward_hook(widen, with_kwargs=True)
    try:
        yield
    finally:
        first.remove()
        last.remove()


def _is_plain(inputs: dict[str, Any]) -> bool:
    """Whether the inputs of a forward pass are tokens alone, and leave their states in a dynamic cache."""
    tensors = {name for name, value in inputs.items() if isinstance(value, Tensor)}
    mask = inputs.get("attention_mask")
    return (type(inputs.get("past_key_values")) is DynamicCache and "input_ids" in tensors
            and tensors <= {*OF_ROWS, "cache_position"} and (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)))


def different_rows(table_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the first of each set of equal rows of a table of whole numbers, (U,), and for each row the place of
    its set among them, (B,)."""
    seen, rows, places = dict[tuple[int, ...], int](), list[int](), list[int]()
    for row, key in enumerate(table_BN.tolist()):
        place = seen.setdefault(tuple(key), len(seen))
        places.append(place)
        if place == len(rows):
            rows.append(row)
    return torch.tensor(rows, device=table_BN.device), torch.tensor(places, device=table_BN.device)


def keeps_states(model: nn.Module) -> bool:
    """Whether the model keeps states outside of transformers' dynamic cache, or states that cannot be copied to other rows."""
    return bool(getattr(model, "_is_stateful", False))


def drops_out(model: nn.Module) -> bool:
    """Whether a forward pass of the model, in the mode in which it is, draws dropout, or the noise of a mixture's router. Rates
    are `p` of a dropout module, and every number of a module that has `drop` or `jitter` in its name."""
    def draws(module: nn.Module) -> bool:
        return any(isinstance(rate, float) and rate > 0 for name, rate in vars(module).items()
                   if "drop" in name or "jitter" in name or (name == "p" and "Dropout" in type(module).__name__))

    return any(module.training and draws(module) for module in model.modules())
