"""Reads chosen latents of a sparse autoencoder from a safetensors file or a SAELens folder: their decoder rows, and their part of
the encoder.

Not covered: transcoders and cross-layer dictionaries. The values of latents are computed for the architectures `standard` and
`jumprelu`; the scale of a latent of another architecture is the stream's standard deviation along the decoder row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from routed_rl.artifacts import read_object
from routed_rl.errors import SubspaceError, reading
from routed_rl.subspace.artifact import check_shape, checked

DECODERS = ("W_dec", "decoder.weight", "decoder", "w_dec")
WITH_COLUMNS = ("decoder.weight",)
"""The names of decoders that are stored as (D, latents); the others are stored as (latents, D)."""
ANOTHER = "is it an SAE of another model?"


@dataclass(frozen=True, eq=False)
class Latents:
    """The chosen latents of a sparse autoencoder: `rows_JD` are their decoder rows, and `numbers` their indices. `hook` is the
    place in `layer` at which the autoencoder reads the stream, such as resid_pre; None if the folder does not say.

    Shape letters: J latents, D stream width, S activations.
    """

    rows_JD: Tensor
    numbers: list[int]
    layer: int | None
    """The layer at which the autoencoder reads the stream; None if the folder does not say."""
    hook: str | None
    encoder: tuple[Tensor, Tensor, Tensor, Tensor] | None
    """The encoder of these latents: weights (D, J), bias (J,), thresholds (J,), and the vector (D,) that is subtracted from an
    activation first. None if the values of latents cannot be computed."""

    def mean_active(self, stream_SD: Tensor) -> list[float | None]:
        """Return, for each latent, the mean of its value over those activations in `stream_SD` at which it is active; None if it
        is never active, or if there is no encoder."""
        if self.encoder is None:
            return [None] * len(self.numbers)
        weights, bias, threshold, before = self.encoder
        values = (stream_SD - before) @ weights + bias
        on = values > threshold
        return [values[:, j][on[:, j]].mean().item() if bool(on[:, j].any()) else None for j in range(len(self.numbers))]


def read_latents(path: str | Path, numbers: Sequence[int], width: int) -> Latents:
    """Read the latents with the indices `numbers` from the file or folder `path`, and nothing else of it. `width`: the width of
    the model's stream.

    SubspaceError for a file that cannot be read, has no decoder or another width, and for an index that is named twice or does
    not exist.
    """
    path, numbers = Path(path).expanduser(), list(numbers)
    if len(set(numbers)) < len(numbers):
        raise SubspaceError(f"subspace.latents={numbers} names a latent twice; name each once")
    file = path / "sae_weights.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise SubspaceError(f"subspace.weights={path}: there is no file {file}; give a safetensors file or a SAELens folder")
    config = _config(file.parent / "cfg.json")
    with reading(SubspaceError, f"subspace.weights={file} is no safetensors file; convert it"), safe_open(file, "pt") as tensors:
        names = set(tensors.keys())
        decoder = next((name for name in DECODERS if name in names), None)
        if decoder is None:
            raise SubspaceError(f"subspace.weights={file} has no decoder; looked for {', '.join(DECODERS)}, found "
                                f"{', '.join(sorted(names)[:8])}")
        columns, shape = decoder in WITH_COLUMNS, tensors.get_slice(decoder).get_shape()
        check_shape(f"{file}: {decoder}", shape, (width, None) if columns else (None, width), ANOTHER)
        count = shape[int(columns)]
        if wrong := [number for number in numbers if not 0 <= number < count]:
            raise SubspaceError(f"subspace.latents has {wrong[0]}, but {file} has latents 0 to {count - 1}")

        def chosen(name: str, *before: int) -> Tensor:
            """Return the entries (*before, J) of the tensor `name` for the chosen latents. Its last dimension counts the latents,
            and `before` are the sizes of the others."""
            check_shape(f"{file}: {name}", tensors.get_slice(name).get_shape(), (*before, count), ANOTHER)
            taken = tensors.get_slice(name)[(*(slice(None) for _ in before), numbers)]
            return checked(f"{file}: {name}", taken, (*before, len(numbers)), ANOTHER)

        rows = chosen(decoder, width).mT if columns else checked(
            f"{file}: {decoder}", tensors.get_slice(decoder)[numbers], (len(numbers), width), ANOTHER)
        encoder = None
        if (config.get("architecture", "standard") in ("standard", "jumprelu") and "W_enc" in names
                and config.get("normalize_activations", "none") in ("none", None)):
            bias, threshold = (chosen(name) if name in names else torch.zeros(len(numbers)) for name in ("b_enc", "threshold"))
            shift = torch.zeros(width)
            if config.get("apply_b_dec_to_input", False) and "b_dec" in names:
                shift = checked(f"{file}: b_dec", tensors.get_tensor("b_dec"), (width,), ANOTHER)
            encoder = chosen("W_enc", width), bias, threshold, shift
    return Latents(rows, numbers, *_place(config), encoder)


def _config(file: Path) -> dict[str, Any]:
    """Return the content of SAELens' `cfg.json`, {} if there is no such file. The entries of `metadata`, where newer versions
    keep the hook, are put beside the others."""
    if not file.is_file():
        return {}
    config = read_object(file, {"metadata": dict[str, Any] | None})
    if config is None:
        raise SubspaceError(f"{file} is damaged, or no JSON object; is it a SAELens folder?")
    return {**(config.get("metadata") or {}), **config}


def _place(config: dict[str, Any]) -> tuple[int | None, str | None]:
    """Return the layer and the hook, such as (8, resid_pre), from the TransformerLens name in a SAELens configuration, such as
    blocks.8.hook_resid_pre. None for each that the configuration does not say. SubspaceError for a place that is not in the
    stream."""
    name = str(config.get("hook_name") or config.get("hook_point") or "")
    found = re.search(r"blocks\.(\d+)\.hook_(resid_(?:pre|mid|post))", name)
    if found:
        return int(found[1]), found[2]
    if "hook_" in name:
        raise SubspaceError(f"the SAE reads {name!r}, which is not the residual stream; give one of hook_resid_pre, "
                            "hook_resid_mid or hook_resid_post")
    layer = config.get("hook_layer", config.get("hook_point_layer"))
    return (layer if isinstance(layer, int) else None), None
