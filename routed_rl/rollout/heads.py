"""Pads attention heads with zeros to a width that vLLM's CPU kernels support; the model's outputs stay the same. Queries are
scaled, because attention divides by the root of the width; rotary embeddings rotate only the first part of a padded head. Not
covered: models that norm their queries and keys, or rotate only a part of each head."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from routed_rl.errors import RolloutError
from routed_rl.rollout.weights import NamedTensors

CPU_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""The widths of heads that vLLM's attention supports on a CPU."""
FAMILIES = ("llama", "mistral")
"""Model types without norms inside attention, for which vLLM takes the width of heads from the config."""


@dataclass(frozen=True)
class HeadPadding:
    """The padding of attention heads from `width` to `padded` numbers."""

    width: int
    padded: int

    def weights(self, weights: NamedTensors) -> Iterator[tuple[str, Tensor]]:
        for name, value in weights:
            yield name, self.tensor(name, value)

    def tensor(self, name: str, value: Tensor) -> Tensor:
        """Pad `value`, a parameter of the model or a matrix of a LoRA, if its name says that it holds attention heads. Any other
        tensor is returned unchanged."""
        if re.search(r"\.[qkv]_proj\.(lora_B\.)?(weight|bias)$", name):
            padded = self._pad(value.mT if value.dim() == 2 else value)
            padded = padded.mT if value.dim() == 2 else padded
            return padded * (self.padded / self.width) ** 0.5 if ".q_proj." in name else padded
        return self._pad(value) if re.search(r"\.o_proj\.(lora_A\.)?weight$", name) else value

    def _pad(self, value: Tensor) -> Tensor:
        """Pad the last axis, which holds the heads one after the other."""
        heads = value.unflatten(-1, (-1, self.width))
        return torch.nn.functional.pad(heads, (0, self.padded - self.width)).flatten(-2)

    def write(self, source: Path, folder: Path) -> None:
        """Write the model in the folder `source`, with padded heads, into `folder`."""
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin", "*.gguf"), dirs_exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for file in sorted(source.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                tensors |= {name: self.tensor(name, opened.get_tensor(name)).contiguous() for name in opened.keys()}  # noqa: SIM118
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        rope = {**(config.get("rope_parameters") or {}), "partial_rotary_factor": self.width / self.padded}
        (folder / "config.json").write_text(json.dumps(config | {"head_dim": self.padded, "rope_parameters": rope}))


def find_padding(config: dict[str, Any]) -> HeadPadding | None:
    """The padding that a model with the settings `config` needs on a CPU; None if vLLM supports its heads. RolloutError if
    padding is not possible."""
    if "num_attention_heads" not in config:
        return None
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if width in CPU_WIDTHS:
        return None
    wider = [known for known in CPU_WIDTHS if known > width]
    rope = config.get("rope_parameters") or {}
    if config["model_type"] not in FAMILIES or not wider or rope.get("rope_type", "default") != "default" or (
            rope.get("partial_rotary_factor", 1.0) != 1.0 or config.get("partial_rotary_factor", 1.0) != 1.0):
        raise RolloutError(f"vLLM on a CPU knows heads of width {', '.join(map(str, CPU_WIDTHS))}, this {config['model_type']} "
                           f"has {width}, and only {', '.join(FAMILIES)} can be filled up; use rollout=transformers")
    return HeadPadding(width, wider[0])
