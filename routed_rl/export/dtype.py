"""Changes the floating-point type of the weights in a folder of a model or adapter."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from routed_rl.artifacts import read_json, write_json
from routed_rl.errors import ModelError

NAMES = ("dtype", "torch_dtype")
"""The keys of config.json that hold a type of numbers."""


def cast(folder: Path, dtype: str) -> None:
    """Round all weights in a folder to `dtype` (float32, bfloat16, float16), in place, and write the type into its config.json.
    ModelError for a weight that is larger than the largest number of that type."""
    size = sum(_cast_file(file, getattr(torch, dtype)) for file in sorted(folder.glob("*.safetensors")))
    if (config := folder / "config.json").exists():
        write_json(config, _renamed(read_json(config), dtype))
    if (index := folder / "model.safetensors.index.json").exists():
        found = read_json(index)
        write_json(index, found | {"metadata": found.get("metadata", {}) | {"total_size": size}})


def _cast_file(file: Path, kind: torch.dtype) -> int:
    """Cast the tensors of one file; returns their size in bytes."""
    with safe_open(file, "pt") as stored:
        tensors, metadata = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()  # noqa: SIM118
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.to(kind)
            if not bool(tensors[name].isfinite().all()):
                raise ModelError(f"{name} has a weight of {float(tensor.abs().max()):.3g}, more than {kind} can hold "
                                 f"({torch.finfo(kind).max:.3g}); use --dtype bfloat16")
    save_file(tensors, file, metadata=metadata)
    return sum(tensor.nbytes for tensor in tensors.values())


def _renamed(settings: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A copy of the content of config.json in which every entry named in `NAMES`, at any depth, is `dtype`."""
    return {key: _renamed(value, dtype) if isinstance(value, dict) else dtype if key in NAMES else value
            for key, value in settings.items()}
