"""Named vectors out of other programs' files: plain safetensors, PEFT adapters, control vectors.

What a name says about its layer is its last number. Not covered: adapters that are no LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from routed_rl.artifacts import read_json
from routed_rl.errors import SubspaceError
from routed_rl.subspace.named import NamedVector

Vectors = dict[str, dict[int | None, Tensor]]
"""name -> layer (None: not said) -> (D,)."""


def read_vectors(path: str | Path, width: int, weakest: float, rank: int | None) -> Vectors:
    """The vectors in a file or adapter folder; of an adapter the strongest output directions of each layer.

    Raises SubspaceError for what cannot be read, and for vectors of another width.
    """
    path = Path(path)
    kind = "adapter" if (path / "adapter_config.json").is_file() else path.suffix
    if kind not in READERS:
        raise SubspaceError(f"subspace.path={path} is none of: a folder that `routed-rl extract` wrote, a PEFT adapter folder, "
                            f"{', '.join(suffix for suffix in READERS if suffix != 'adapter')}")
    if kind != "adapter" and not path.is_file():
        raise SubspaceError(f"subspace.path={path}: there is no such file (looked in {Path.cwd()})")
    try:
        return READERS[kind](path, width, weakest, rank)
    except SubspaceError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, IndexError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SubspaceError(f"subspace.path={path} cannot be read: {type(error).__name__} {reason}; take another copy") from error


def placed(vectors: Vectors, layers: int, layer: int | None, everywhere: bool, flip: bool) -> list[NamedVector]:
    """`vectors` at the layers they belong to; one that does not say stands at `layer`, or at all layers if that is None."""
    made = []
    for name, at in vectors.items():
        places: dict[int, Tensor] = {}
        for said, values in at.items():
            where = [said] if said is not None else range(layers) if layer is None else [layer]
            places |= dict.fromkeys(range(layers) if everywhere and len(at) == 1 else where, -values if flip else values)
        if wrong := [place for place in places if not 0 <= place < layers]:
            raise SubspaceError(f"axis {name} belongs to layer {wrong[0]}, the model has layers 0 to {layers - 1}; set "
                                "subspace.layer or take another file")
        made.append(NamedVector(name, places, {}))
    return made


def _from_safetensors(path: Path, width: int, _weakest: float, _rank: int | None) -> Vectors:
    """(D,) and (K, D) tensors, of the layer that their name ends in; (L, K, D) ones of all layers in order."""
    found: Vectors = {}
    for key, tensor in sorted(load_file(path).items(), key=lambda item: [int(part) if part.isdigit() else part
                                                                          for part in re.split(r"(\d+)", item[0])]):
        name, layer = _split(key)
        _check_width(path, key, tensor.shape[-1] if tensor.ndim else 0, width)
        if not tensor.is_floating_point():
            raise SubspaceError(f"{path}: {key} holds whole numbers ({tensor.dtype}); give directions in float32")
        if tensor.ndim == 3:
            for number, rows in enumerate(tensor.float()):
                _put(found, name, number, rows)
        elif tensor.ndim <= 2:
            _put(found, name, layer, tensor.float().reshape(-1, width))
        else:
            raise SubspaceError(f"{path}: {key} has shape {tuple(tensor.shape)}; give (D,), (K, D) or (L, K, D)")
    if not found:
        raise SubspaceError(f"{path} holds no tensor; give a file with vectors as wide as the stream ({width})")
    return found


def _from_gguf(path: Path, width: int, _weakest: float, _rank: int | None) -> Vectors:
    """llama.cpp's control vectors: `direction.N` is added to the output of layer N."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise SubspaceError(f"subspace.path={path} needs the package gguf to be read: pip install gguf") from error
    found: Vectors = {}
    for tensor in GGUFReader(path).tensors:
        name, layer = _split(tensor.name)
        values = torch.tensor(tensor.data).float().reshape(-1)
        _check_width(path, tensor.name, len(values), width)
        _put(found, name, layer, values.unsqueeze(0))
    if not found:
        raise SubspaceError(f"{path} holds no direction; is it a control vector?")
    return found


def _from_adapter(path: Path, width: int, weakest: float, rank: int | None) -> Vectors:
    """The strongest left singular vectors of a layer's B·A, over all targets that write to the stream.

    Their sign is that of the largest entry, for an adapter does not say which way the persona lies: set subspace.flip.
    """
    config = read_json(path / "adapter_config.json")
    file = path / "adapter_model.safetensors"
    if config.get("peft_type") != "LORA" or not file.is_file():
        raise SubspaceError(f"adapter {path} (peft_type {config.get('peft_type')}) is no LoRA with adapter_model.safetensors")
    tensors = load_file(file)
    changes: dict[int, list[Tensor]] = {}
    for key, b in tensors.items():
        a = tensors.get(key.replace("lora_B", "lora_A"))
        place = re.search(r"\.(?:layers|h)\.(\d+)\.", key)
        # Only writers: a module whose output is the stream's width may also be a query, which is read and not added.
        if "lora_B" in key and a is not None and place and re.search(r"\.(o_proj|down_proj|c_proj|out_proj)\.", key):
            _check_width(path, key, b.shape[0], width)
            changes.setdefault(int(place[1]), []).append(b.float() @ a.float())
    if not changes:
        raise SubspaceError(f"adapter {path} changes no writer (o_proj, down_proj or c_proj), so it has no direction in the "
                            "stream")
    found: Vectors = {}
    for layer, parts in sorted(changes.items()):
        if not bool((change := torch.cat(parts, dim=1)).isfinite().all()):
            raise SubspaceError(f"adapter {path} is not finite at layer {layer}; take another one")
        left, singular, _ = torch.linalg.svd(change.double(), full_matrices=False)
        # B·A in float32 leaves rounding of this size where there is no direction.
        strong = singular >= (weakest if rank is None else 1e-5) * singular[0]
        kept = int(strong.sum()) if rank is None else min(rank, int(strong.sum()))
        for number, column in enumerate(left[:, :kept].mT.float(), start=1):
            sign = torch.sign(column[column.abs().argmax()])
            found.setdefault(f"adapter_{number}", {})[layer] = sign * column
    return found


READERS: dict[str, Callable[[Path, int, float, int | None], Vectors]] = {
    "adapter": _from_adapter, ".safetensors": _from_safetensors, ".gguf": _from_gguf}


def _split(key: str) -> tuple[str, int | None]:
    """direction.3 -> (direction, 3)."""
    numbers = re.findall(r"(?<![A-Za-z])\d+(?![A-Za-z])", key)
    if not numbers:
        return key.replace("/", "."), None
    head, _, tail = key.rpartition(numbers[-1])
    return re.sub(r"[._/-]{2,}|/", ".", head + tail).strip("._/-") or "direction", int(numbers[-1])


def _put(found: Vectors, name: str, layer: int | None, rows_KD: Tensor) -> None:
    for number, row in enumerate(rows_KD, start=1):
        found.setdefault(name if len(rows_KD) == 1 else f"{name}_{number}", {})[layer] = row


def _check_width(path: Path, key: str, width: int, ours: int) -> None:
    if width != ours:
        raise SubspaceError(f"{path}: {key} is {width} wide, the model's stream is {ours} wide; is it of another model?")
