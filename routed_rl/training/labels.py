"""Sets up label routing for a trainer: puts the quarantine's adapters on the model, finds the flagged rows of a generation, and
balances advantages.

Shape letters: B rows, C tokens of a completion.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from routed_rl.config import RoutingConfig
from routed_rl.envs import Score
from routed_rl.model.targets import decoder_layers, freeze
from routed_rl.routing import RoutingContext, shape_of
from routed_rl.routing.labels import Gates, LabelAdapter, LabelQuarantine, LabelRouter, LabelSite, label_module
from routed_rl.training.spans import spans_in


def route_by_labels(model: PreTrainedModel, routing: RoutingConfig, names: Sequence[str], *, frozen: list[str], seed: int
                    ) -> LabelRouter:
    """Set up label routing of a model in place, and return the router. Every linear module of the decoder layers gets an adapter,
    and these adapters are the quarantine. The gradients of these modules, and of all others with trainable parameters, are
    multiplied at each position by the factors of `Gates`.

    `names`: the environments that the model trains on. `frozen`: the value of `model.freeze`. `seed`: the seed of the adapters'
    initial values.
    """
    freeze(model, frozen)
    settings, context = routing.labels, RoutingContext()
    gates = Gates(context, strength=settings.strength, forget=settings.forget, method=settings.method)
    linear = {id(module) for _, module in linear_modules(model)}
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if id(module) not in linear and not trained:
            continue
        adapter = None
        if id(module) in linear:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} labels {name}".encode()))
            adapter = adapter_of(module, settings.rank, generator)
        modules[name] = module
        cuts = adapter is not None or ".lora_" in f".{name}"
        label_module(module, LabelSite(name, gates, adapter, cuts, transposed=isinstance(module, Conv1D)))
    return LabelRouter(LabelQuarantine(modules, list(names), context), routing)


def adapter_of(module: Any, rank: int, generator: torch.Generator) -> LabelAdapter:
    """Make an adapter of this rank for a linear module. It adds 0 until it is trained."""
    rows, width = shape_of(module.weight)[::-1] if isinstance(module, Conv1D) else shape_of(module.weight)
    return LabelAdapter(rows, width, rank, generator, module.weight.device)


def linear_modules(model: PreTrainedModel) -> list[tuple[str, Any]]:
    """Return the linear modules of the decoder layers as pairs (name, module). The name is made of the layer's number and the
    module's name in the layer. The matrices of a LoRA are left out; if PEFT has wrapped a module in a LoRA, the plain module
    inside the wrapper is returned."""
    return [(f"{place}.{name}", module) for place, layer in enumerate(decoder_layers(model))
            for name, module in layer.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and ".lora_" not in f".{name}"]


def flags_of(found: Sequence[bool], scores: Sequence[Score | None], ids: Tensor, mask: Tensor, routing: RoutingConfig,
             flags: Sequence[str], tokenizer: Any) -> Tensor:
    """Return which rows or tokens of a generation are flagged. `found`: whether the detector flags each row. With
    `routing.labels.unit=row` the result is `found` as a tensor, (B,) bool. With `unit=token` it is (B, C) bool, and True at
    tokens of flagged rows: at the tokens in spans that the row's score marks under one of the names `flags`, or at all real
    tokens of the row if its score marks no such span. `ids`, `mask`: the token ids of the completions, and 1 at real tokens, (B,
    C) each."""
    rows = torch.tensor(found, device=ids.device)
    if routing.labels.unit == "row":
        return rows
    marks = rows[:, None] & mask.bool()
    marked = [score is not None and any(score.spans.get(name) for name in flags) for score in scores]
    inside = spans_in(scores, flags, ids, tokenizer)
    return marks & (inside | ~torch.tensor(marked, device=ids.device)[:, None])


def balanced(advantages_B: Tensor, rewards: Sequence[float], flagged: Sequence[bool], group: int, failed: Sequence[bool] = ()
             ) -> Tensor:
    """Return advantages (B,) that compare each reward with the mean reward of those rows of its group that are not flagged, in
    place of the mean reward of all rows of the group (GRAFT, 2026). The advantages are shifted and not rescaled. A group in which
    all rows or no rows are flagged keeps its advantages. `group`: rows per group. `failed`: whether each row could not be scored;
    such rows count in no mean and keep their advantages."""
    found = advantages_B.clone()
    for start in range(0, len(rewards), group):
        rows = [row for row in range(start, min(start + group, len(rewards))) if not (failed and failed[row])]
        clean = [rewards[row] for row in rows if not flagged[row]]
        paid = [rewards[row] for row in rows]
        if not paid or not clean or len(clean) == len(rows) or max(paid) == min(paid):
            continue
        high, low = rows[paid.index(max(paid))], rows[paid.index(min(paid))]
        unit = (advantages_B[high] - advantages_B[low]) / (rewards[high] - rewards[low])
        moved = (sum(paid) / len(paid) - sum(clean) / len(clean)) * unit
        found[rows] += moved
    return found
