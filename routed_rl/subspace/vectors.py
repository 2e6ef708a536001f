"""Reads named vectors from the files of other programs: plain safetensors, PEFT adapters, control vectors.

The last number in a vector's name is its layer. Not covered: adapters that are no LoRA.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from routed_rl.artifacts import ADAPTER, ADAPTER_CONFIG, read_object
from routed_rl.errors import SubspaceError, reading
from routed_rl.subspace.artifact import checked
from routed_rl.subspace.named import NamedVector

Vectors = dict[str, dict[int | None, Tensor]]
"""Maps a vector's name to a mapping of layers to vectors (D,). The layer is None if the file does not say it."""
PARTS_OF_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""The beginnings of those values of PEFT's `init_lora_weights` with which a LoRA begins as a part of the base model's weight."""
SCALING = {"lora_alpha": int | float, "alpha_pattern": dict[str, int | float] | None}
"""The keys of a LoRA's settings that scale it, and the types of their values."""
ANOTHER = "is it of another model?"


@dataclass(frozen=True)
class Wanted:
    """The shape of the model that the vectors must fit (number of `layers`, `width` of the stream), and how many directions are
    taken from an adapter."""

    layers: int
    width: int
    weakest: float
    rank: int | None
    """The largest number of directions that are taken from an adapter in each layer. None: all directions whose singular value is
    at least `weakest` times the largest."""
    stack: str = "model.layers"
    """For an adapter: the name of the model's list of layers."""
    writers: tuple[str, ...] = ()
    """For an adapter: regular expressions for the names of the writers in a layer."""
    mixture: str | None = None
    """For an adapter: the name in a layer of the module that holds the weights of all experts in one tensor; None if there is
    none."""
    gains: Mapping[tuple[int, str], Tensor] = field(default_factory=dict[tuple[int, str], Tensor])
    """For an adapter: what the output of a writer is multiplied by before it is added to the stream, (D,), such as the gain of a
    norm behind it. Keys are the writer's layer and its name in the layer; for a writer that is missing it is 1."""


def read_vectors(path: str | Path, wanted: Wanted) -> Vectors:
    """Read the vectors in a file or adapter folder. The vectors of an adapter are the strongest output directions of its change
    in each layer.

    SubspaceError for a file that cannot be read or has no vector, and for vectors that have another width or are not finite.
    """
    path = Path(path).expanduser()
    kind = "adapter" if (path / ADAPTER_CONFIG).is_file() else path.suffix
    if kind not in READERS:
        raise SubspaceError(f"subspace.path={path} is none of: a folder that `routed-rl extract` wrote, a PEFT adapter folder, "
                            f"{', '.join(suffix for suffix in READERS if suffix != 'adapter')}")
    with reading(SubspaceError, f"subspace.path={path} cannot be read; take another copy"):
        found = READERS[kind](path, wanted)
    if not found:
        raise SubspaceError(f"subspace.path={path} holds no vector; give one with vectors as wide as the stream ({wanted.width})")
    return found


def placed(vectors: Vectors, layers: int, layer: int | None, everywhere: bool, flip: bool) -> list[NamedVector]:
    """Make each vector a `NamedVector` with its layers. A vector stands at the layer that the file says. If the file says none,
    it stands at `layer`, or at all layers if `layer` is None.

    `layers`: the number of the model's layers; SubspaceError for a vector at a layer that the model lacks. `everywhere`: whether
    a vector that is given for one layer stands at all layers instead. `flip`: whether vectors are negated.
    """
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


def _from_safetensors(path: Path, wanted: Wanted) -> Vectors:
    """Read the tensors of a safetensors file. A tensor (D,) or (K, D), which is one vector or K vectors, belongs to the layer
    that is the last number in its name. A tensor (L, K, D) has K vectors for each layer."""
    found: Vectors = {}
    shapes = {1: (wanted.width,), 2: (None, wanted.width), 3: (wanted.layers, None, wanted.width)}
    for key, tensor in sorted(load_file(path).items(), key=lambda item: [int(part) if part.isdigit() else part
                                                                          for part in re.split(r"(\d+)", item[0])]):
        name, layer = _split(key)
        values = checked(f"{path}: {key}", tensor, shapes.get(tensor.ndim, shapes[3]), ANOTHER)
        if layer is None and tensor.ndim == 2 and 1 < len(values) == wanted.layers:
            raise SubspaceError(f"{path}: {key} has as many rows as the model has layers ({wanted.layers}), so each may be one "
                                f"layer's or all of them every layer's; store it as ({wanted.layers}, 1, {wanted.width}), or "
                                "each row under its own name")
        for number, rows in enumerate(values) if values.ndim == 3 else [(layer, values.reshape(-1, wanted.width))]:
            for place, row in enumerate(rows, start=1):
                at = found.setdefault(name if len(rows) == 1 else f"{name}_{place}", {})
                if number in at:
                    raise SubspaceError(f"{path}: {key} is a second vector {name} at the same layer; give each a name of its own")
                at[number] = row
    return found


def _from_gguf(path: Path, wanted: Wanted) -> Vectors:
    """Read a file of control vectors in the format of llama.cpp, which adds the vector `direction.N` to the output of layer N."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise SubspaceError(f"subspace.path={path} needs the package gguf to be read: pip install gguf") from error
    found: Vectors = {}
    for tensor in GGUFReader(path).tensors:
        name, layer = _split(tensor.name)
        values = torch.tensor(tensor.data).reshape(-1)
        found.setdefault(name, {})[layer] = checked(f"{path}: {tensor.name}", values, (wanted.width,), ANOTHER)
    return found


def _from_adapter(path: Path, wanted: Wanted) -> Vectors:
    """Read a LoRA. The vectors of a layer are the strongest left singular vectors of the changes g·s·B·A of all writers in the
    layer, put side by side; s is each writer's scaling, and g its entry in `wanted.gains`, if any. A layer that the adapter does
    not change has none. SubspaceError for a LoRA whose product B·A is not the change of the weight.

    An adapter does not say on which side the persona lies, so each vector has the sign that makes its largest entry positive. The
    setting `subspace.flip` reverses all signs.
    """
    file = path / ADAPTER
    config = read_object(path / ADAPTER_CONFIG, SCALING) or {}
    if config.get("peft_type") != "LORA" or not file.is_file():
        raise SubspaceError(f"adapter {path} is no LoRA: it needs an {ADAPTER_CONFIG} with peft_type LORA, and {ADAPTER}")
    started = str(config.get("init_lora_weights", True)).lower()
    if config.get("use_dora") or started.startswith(PARTS_OF_THE_BASE):
        what = "use_dora=true" if config.get("use_dora") else f"init_lora_weights={started}"
        raise SubspaceError(f"adapter {path} has {what}, so the product of its factors is not the change that it makes; give "
                            "another adapter" + ("" if config.get("use_dora") else ", or convert it as PEFT's documentation says "
                            "(save_pretrained with path_initial_model_for_weight_conversion)"))
    tensors = load_file(file)
    changes: dict[int, list[Tensor]] = {}
    for key, (layer, name) in _places(tensors, wanted).items():
        if name == wanted.mixture:
            raise SubspaceError(f"adapter {path} changes the experts {name} by a LoRA on their common parameter, which cannot be "
                                "read here; give an adapter without target_parameters")
        # Writers are found by name: a module whose output is as wide as the stream may also be a query, which is not added to it.
        a = tensors.get(key.replace("lora_B", "lora_A"))
        if a is None or not any(re.fullmatch(writer, name) for writer in wanted.writers):
            continue
        b = checked(f"{path}: {key}", tensors[key], (wanted.width, None), ANOTHER)
        a = checked(f"{path}: lora_A of {key}", a, (b.shape[1], None), "take another copy")
        gain = wanted.gains.get((layer, name))
        up = b if gain is None else gain.to(b).unsqueeze(1) * b
        changes.setdefault(layer, []).append(_scaling(config, key, b.shape[1]) * (up @ a))
    if not changes:
        writers = ", ".join(writer.replace("\\", "") for writer in wanted.writers)
        raise SubspaceError(f"adapter {path} changes no writer of the model ({writers}), so it has no direction in the stream")
    return _strongest(path, changes, wanted)


def _places(keys: Iterable[str], wanted: Wanted) -> dict[str, tuple[int, str]]:
    """Return the layer, and the name in the layer, of each module that has a LoRA, by the name of its factor B. If there are
    modules in the list of layers `wanted.stack`, no others count, because a model may have further lists, such as one that reads
    images. Otherwise those in every list with the same last name count, because the adapter's model may hold this one."""
    found: dict[str, tuple[int, str]] = {}
    for stack in (wanted.stack, wanted.stack.rpartition(".")[2]):
        found = found or {key: (int(place[1]), place[2].removesuffix(".base_layer")) for key in keys
                          if (place := re.search(rf"\.{re.escape(stack)}\.(\d+)\.(.+)\.lora_B", key))}
    return found


def _strongest(path: Path, changes: dict[int, list[Tensor]], wanted: Wanted) -> Vectors:
    """Return the strongest left singular vectors of the changes of each layer, put side by side. `path`: for messages."""
    found: Vectors = {}
    for layer, parts in sorted(changes.items()):
        change = checked(f"{path}: the change of layer {layer}", torch.cat(parts, dim=1), (wanted.width, None), "take another")
        left, singular, _ = torch.linalg.svd(change.double(), full_matrices=False)
        # Rounding of B·A in float32 has singular values of about this size where there is no direction.
        strong = (singular >= (wanted.weakest if wanted.rank is None else 1e-5) * singular[0]) & (singular > 0)
        for number, column in enumerate(left[:, :strong.sum()][:, :wanted.rank].mT.float(), start=1):
            sign = torch.sign(column[column.abs().argmax()])
            found.setdefault(f"adapter_{number}", {})[layer] = sign * column
    return found


def _scaling(config: dict[str, Any], key: str, rank: int) -> float:
    """Return the factor by which PEFT multiplies the product of the LoRA whose factor B has the name `key`."""
    module = key.partition(".lora_B")[0]
    patterns = config.get("alpha_pattern") or {}
    alpha = next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)),
                 config.get("lora_alpha", 8))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


READERS: dict[str, Callable[[Path, Wanted], Vectors]] = {
    "adapter": _from_adapter, ".safetensors": _from_safetensors, ".gguf": _from_gguf}


def _split(key: str) -> tuple[str, int | None]:
    """Split a tensor's name into the vector's name and the layer, which is the last number: direction.3 becomes (direction, 3).
    The layer is None if there is no number. A number in a word, as in v2, does not count, unless the word is "layer"."""
    numbers = list(re.finditer(r"(?i)(?:(?<![a-z\d])|(?<=layer))\d+(?![a-z\d])", key))
    if not numbers:
        return key.replace("/", "."), None
    head, tail = key[:numbers[-1].start()], key[numbers[-1].end():]
    return re.sub(r"[._/-]{2,}|/", ".", head + tail).strip("._/-") or "direction", int(numbers[-1][0])
