"""Capture the residual stream at layers' outputs, keeping only the positions asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from routed_rl.model.targets import decoder_layers


@contextmanager
def capturing(model: PreTrainedModel, positions_BP: Tensor) -> Iterator[list[Tensor]]:
    """Collect each layer's output at `positions_BP` (B, P) of the next forward: one (B, P, D) float32 tensor a layer."""
    captured: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        rows = torch.arange(stream.shape[0], device=stream.device).unsqueeze(1)
        captured.append(stream[rows, positions_BP.to(stream.device)].float())

    hooks = [layer.register_forward_hook(keep) for layer in decoder_layers(model)]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()
