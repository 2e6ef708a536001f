"""The frozen class `Subspace`, which extraction makes and routing uses, and its folder on disk (safetensors + JSON)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from routed_rl.artifacts import broken_seal, read_json, sealed_folder, write_json
from routed_rl.errors import SubspaceError, reading
from routed_rl.linalg import orthonormal, orthonormality_error
from routed_rl.shapes import fits

RECORD = {"provenance": {"method": str, "model": str, "model_hash": str, "width": int, "layers": int, "rank": int | None,
                         "prompts": str, "prompts_hash": str, "details": dict[str, Any]},
          "axis_names": list[str], "quality": dict[str, Any]}
"""The keys of `subspace.json` and the types of their values."""


@dataclass(frozen=True)
class Provenance:
    """Where a subspace comes from. These facts are enough to refuse the subspace for another model."""

    method: str
    model: str
    """The `model.path` from which it was extracted."""
    model_hash: str
    width: int
    layers: int
    rank: int | None
    """The rank that the settings asked for; None if the strength of the directions decided."""
    prompts: str = ""
    prompts_hash: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions of personas in every layer's output. L layers, D stream width, K_l rank of layer l, J named axes."""

    directions: list[Tensor]
    """For each layer, orthonormal columns (D, K_l), the strongest first."""
    axes: list[Tensor]
    """For each layer, the named directions along which shifts are reported, as columns (D, J) of length 1 or 0. Each points to
    the positive persona."""
    axis_names: list[str]
    scales: Tensor
    """(L, J): the length along each axis that counts as 1."""
    units: Tensor
    """(L,): the gap between the personas at each layer, the unit of the quarantine's bound."""
    stream: Tensor
    """(L, S, D): a centred sample of the base model's stream, for covariance-matched random bases."""
    provenance: Provenance
    quality: dict[str, Any] = field(default_factory=dict)
    spreads: list[Tensor] | None = None
    """For each layer (K_l,): the length that counts as 1 along each direction. None if the axes after the first one are the
    directions; their lengths are then in `scales`."""

    def __post_init__(self) -> None:
        self._check_tensors()
        for layer, basis in enumerate(self.directions):
            if basis.shape[1] > basis.shape[0]:
                raise SubspaceError(f"layer {layer}'s basis has rank {basis.shape[1]}, more than the stream's width "
                                    f"{basis.shape[0]}; lower subspace.rank")
            if not (error := orthonormality_error(basis)) <= 1e-4:
                raise SubspaceError(f"layer {layer}'s basis is not orthonormal (off by {error:.1e}); extract it again")
        lengths = torch.cat([axes.double().norm(dim=0) for axes in self.axes])
        if not bool(((lengths - 1).abs() <= 1e-3).logical_or(lengths == 0).all()):
            raise SubspaceError("an axis of the subspace has another length than 1; extract it again")
        if len(set(self.axis_names)) < len(self.axis_names) or any("/" in name for name in self.axis_names):
            raise SubspaceError(f"the axes of a subspace need names that differ and have no '/', got {self.axis_names}")
        if not bool((self.scales > 0).all() and (self.units > 0).all()):
            raise SubspaceError("a scale of the subspace is not positive: the two personas do not differ at some layer; "
                                "use prompts that differ")

    def _check_tensors(self) -> None:
        """Refuse missing layers, a wrong shape or type of number, and numbers that are not finite."""
        layers, width, named = self.provenance.layers, self.provenance.width, len(self.axis_names)
        again = "extract it again"
        for name, tensors in {"directions": self.directions, "axes": self.axes, "spreads": self.spreads}.items():
            if tensors is not None and len(tensors) != layers:
                raise SubspaceError(f"the subspace has {name} of {len(tensors)} layers, its model has {layers}; {again}")
        shapes: list[tuple[str, Tensor, tuple[int | None, ...]]] = [
            ("scales", self.scales, (layers, named)), ("units", self.units, (layers,)),
            ("stream", self.stream, (layers, None, width))]
        for layer, (basis, axes) in enumerate(zip(self.directions, self.axes, strict=True)):
            shapes += [(f"directions of layer {layer}", basis, (width, None)), (f"axes of layer {layer}", axes, (width, named))]
            if self.spreads is not None:
                shapes.append((f"spreads of layer {layer}", self.spreads[layer], (basis.shape[-1],)))
        for name, tensor, shape in shapes:
            checked(f"the subspace's {name}", tensor, shape, again)
            if tensor.dtype not in (torch.float32, torch.float64):
                raise SubspaceError(f"the subspace's {name}: the numbers are {tensor.dtype}, not float32; {again}")

    def writer_bases(self, layout: str, drop_below: float, shared_rank: int | None = None) -> list[Tensor]:
        """For each layer l, the basis (D, K) of its writers. `spanning`: it spans the directions of layers l to L, so that a
        contained cotangent has no component in any later layer's subspace. `per_layer`: it spans the directions of layer l.
        `shared`: it spans those of all layers, is the same for all, and has a rank of at most `shared_rank`."""
        if layout == "per_layer":
            return list(self.directions)
        # Weighted by strength: layers mostly rotate the same few directions, and the rest hardly tells the personas apart.
        weighted = [basis * self.strengths(layer) for layer, basis in enumerate(self.directions)]
        if layout == "shared":
            everything = orthonormal(torch.cat(weighted, dim=1), drop_below=drop_below)
            return [everything[:, :shared_rank]] * len(self.directions)
        return [orthonormal(torch.cat(weighted[layer:], dim=1), drop_below=drop_below) for layer in range(len(weighted))]

    def strengths(self, layer: int) -> Tensor:
        """(K_l,): the distance between the personas along each direction of a layer, in units of the gap at that layer."""
        rank = self.directions[layer].shape[1]
        return (self.scales[layer, 1:1 + rank] if self.spreads is None else self.spreads[layer]) / self.units[layer]

    def layer_weights(self) -> Tensor:
        """(L,): the weight of each layer in a mean of shifts over layers. It is 2 AUROC - 1 of the persona axis on held-out
        prompts, so 0 if the axis does not tell the personas apart. At such a layer the gap between the personas, which is the
        unit of the shift, is tiny, and any change would be many gaps. All weights are 1 if nothing was held out."""
        found = [row.get("auroc") for row in self.quality.get("layers", [])]
        weights = torch.tensor([0.0 if value is None else max(2 * value - 1, 0.0) for value in found])
        return weights if len(weights) == self.provenance.layers and bool(weights.any()) else torch.ones(self.provenance.layers)

    def check_model(self, *, model: str, model_hash: str, width: int, layers: int) -> None:
        """SubspaceError, which names the difference, if the model is not the one from which this subspace was extracted."""
        ours = self.provenance
        if (ours.width, ours.layers) != (width, layers):
            raise SubspaceError(f"the subspace has {ours.layers} layers of width {ours.width} but {model} has {layers} of "
                                f"width {width}; it was extracted from {ours.model}: extract one from {model}")
        if ours.model_hash != model_hash:
            raise SubspaceError(f"the subspace was extracted from {ours.model} (weights {ours.model_hash[:12]}), not from "
                                f"{model} (weights {model_hash[:12]}): extract one from {model}")

    def save(self, folder: Path) -> None:
        """Write `subspace.safetensors` and `subspace.json`. Either both are written or none."""
        tensors = {"scales": self.scales, "units": self.units, "stream": self.stream}
        for name, layers in {"directions": self.directions, "axes": self.axes, "spreads": self.spreads or []}.items():
            tensors |= {f"{name}.{layer}": tensor for layer, tensor in enumerate(layers)}
        with sealed_folder(folder) as partial:
            save_file({key: value.float().contiguous() for key, value in tensors.items()}, partial / "subspace.safetensors")
            write_json(partial / "subspace.json", {"provenance": asdict(self.provenance), "axis_names": self.axis_names,
                                                   "quality": self.quality})

    @classmethod
    def load(cls, folder: str | Path) -> "Subspace":
        """Read a folder that `save` wrote; SubspaceError for a missing or changed file."""
        folder = Path(folder)
        problem = broken_seal(folder) if folder.is_dir() else "no such folder"
        if problem is not None:
            raise SubspaceError(f"no subspace can be read from {folder}: {problem}; write one with `routed-rl extract`")
        with reading(SubspaceError, f"no subspace can be read from {folder}; write one with `routed-rl extract`"):
            tensors, record = load_file(folder / "subspace.safetensors"), read_json(folder / "subspace.json")
            if not fits(record, RECORD) or not record.keys() >= RECORD.keys():
                raise ValueError("subspace.json does not hold what was written")
            provenance = Provenance(**record["provenance"])
            directions, axes, spreads = ([tensors[key] for layer in range(len(tensors)) if (key := f"{name}.{layer}") in tensors]
                                         for name in ("directions", "axes", "spreads"))
            return cls(directions, axes, record["axis_names"], tensors["scales"], tensors["units"], tensors["stream"], provenance,
                       record["quality"], spreads or None)


def checked(name: str, tensor: Tensor, shape: tuple[int | None, ...], way_out: str) -> Tensor:
    """`tensor` in float32 (or float64). SubspaceError if it has another shape (None: any size), an integer type, or numbers that
    are not finite."""
    check_shape(name, tensor.shape, shape, way_out)
    if not tensor.is_floating_point():
        raise SubspaceError(f"{name}: the numbers are {tensor.dtype}, not float32; {way_out}")
    if not bool(tensor.isfinite().all()):
        raise SubspaceError(f"{name}: a number is nan or infinite; {way_out}")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def check_shape(name: str, found: Sequence[int], shape: tuple[int | None, ...], way_out: str) -> None:
    """SubspaceError unless the sizes are those of `shape`, in which None stands for any size."""
    if len(found) != len(shape) or any(wanted not in (None, size) for size, wanted in zip(found, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise SubspaceError(f"{name}: the shape is ({', '.join(map(str, found))}), not ({wanted}); {way_out}")
