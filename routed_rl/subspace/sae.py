"""Rows of a sparse autoencoder's decoder, from a safetensors file or a SAELens folder.

Not covered: transcoders and cross-layer dictionaries. Activations are computed for the architectures `standard` and
`jumprelu`; for others the scale is left to the stream's standard deviation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from routed_rl.artifacts import read_json
from routed_rl.errors import SubspaceError

DECODERS = ("W_dec", "decoder.weight", "decoder", "w_dec")
WITH_COLUMNS = ("decoder.weight",)
"""Stored as (D, latents); the others as (latents, D)."""


@dataclass(frozen=True, eq=False)
class Latents:
    """The chosen latents; J of them, D stream width."""

    rows_JD: Tensor
    numbers: list[int]
    layer: int | None
    """Whose `hook` it reads, where the folder says so."""
    hook: str | None
    encoder: tuple[Tensor, Tensor, Tensor, Tensor] | None
    """(D, J) weights, (J,) bias, (J,) thresholds, (D,) what is taken off the input first."""

    def mean_active(self, stream_SD: Tensor) -> list[float | None]:
        """Per latent, its mean value over the activations at which it is on; None where it never is, or cannot be known."""
        if self.encoder is None:
            return [None] * len(self.numbers)
        weights, bias, threshold, before = self.encoder
        values = (stream_SD - before) @ weights + bias
        on = values > threshold
        return [values[:, j][on[:, j]].mean().item() if bool(on[:, j].any()) else None for j in range(len(self.numbers))]


def read_latents(path: str | Path, numbers: Sequence[int], width: int) -> Latents:
    """Decoder rows `numbers`, and what of the encoder is needed; only these rows are read.

    Raises SubspaceError for a file that cannot be read, that has no decoder, another width, or fewer latents.
    """
    path = Path(path)
    config = _config(path)
    file = path / "sae_weights.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise SubspaceError(f"subspace.weights={path}: there is no file {file}; give a safetensors file or a SAELens folder")
    try:
        with safe_open(file, "pt") as tensors:
            return _latents(tensors, file, list(numbers), width, config)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:100]
        raise SubspaceError(f"subspace.weights={file} is no safetensors file ({reason}); convert it") from error


def _latents(tensors: Any, file: Path, numbers: list[int], width: int, config: dict[str, Any]) -> Latents:
    names = set(tensors.keys())
    decoder = next((name for name in DECODERS if name in names), None)
    if decoder is None:
        raise SubspaceError(f"subspace.weights={file} has no decoder; looked for {', '.join(DECODERS)}, found "
                            f"{', '.join(sorted(names)[:8])}")
    slices = tensors.get_slice(decoder)
    columns = decoder in WITH_COLUMNS
    shape = tuple(slices.get_shape())
    count, its_width = reversed(shape) if columns else shape
    if its_width != width:
        raise SubspaceError(f"the decoder of {file} writes to a stream {its_width} wide, the model's is {width} wide; is it an "
                            "SAE of another model?")
    if wrong := [number for number in numbers if not 0 <= number < count]:
        raise SubspaceError(f"subspace.latents has {wrong[0]}, but {file} has latents 0 to {count - 1}")
    if len(set(numbers)) < len(numbers):
        raise SubspaceError(f"subspace.latents={numbers} names a latent twice; name each once")
    rows = torch.stack([(slices[:, number] if columns else slices[number]).float().reshape(-1) for number in numbers])
    layer, hook = _place(config)
    return Latents(rows, numbers, layer, hook, _encoder(tensors, names, numbers, width, config))


def _encoder(tensors: Any, names: set[str], numbers: list[int], width: int, config: dict[str, Any]
             ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    plain = config.get("architecture", "standard") in ("standard", "jumprelu") and "W_enc" in names
    if not plain or config.get("normalize_activations", "none") not in ("none", None):
        return None
    weights = torch.stack([tensors.get_slice("W_enc")[:, number].float().reshape(-1) for number in numbers], dim=1)
    bias, threshold = (tensors.get_tensor(name).float()[numbers] if name in names else torch.zeros(len(numbers))
                       for name in ("b_enc", "threshold"))
    shifted = config.get("apply_b_dec_to_input", False) and "b_dec" in names
    return weights, bias, threshold, tensors.get_tensor("b_dec").float() if shifted else torch.zeros(width)


def _config(path: Path) -> dict[str, Any]:
    """`cfg.json` beside the weights, {} where there is none; newer SAELens keeps the hook in `metadata`."""
    file = (path if path.is_dir() else path.parent) / "cfg.json"
    if not file.is_file():
        return {}
    config = read_json(file)
    if not isinstance(config, dict):
        raise SubspaceError(f"{file} is no JSON object; is it a SAELens folder?")
    return {**(config.get("metadata") or {}), **config}


def _place(config: dict[str, Any]) -> tuple[int | None, str | None]:
    """Layer and hook point of a TransformerLens name such as blocks.8.hook_resid_pre."""
    name = str(config.get("hook_name") or config.get("hook_point") or "")
    found = re.search(r"blocks\.(\d+)\.hook_(resid_(?:pre|mid|post))", name)
    if found:
        return int(found[1]), found[2]
    layer = config.get("hook_layer", config.get("hook_point_layer"))
    return (layer if isinstance(layer, int) else None), None
