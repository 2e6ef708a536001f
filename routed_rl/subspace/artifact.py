"""The frozen class `Subspace`, which extraction makes and routing uses, and its folder on disk (safetensors + JSON)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from routed_rl.artifacts import SEAL, broken_seal, check_above, read_json, sealed_folder, write_json
from routed_rl.errors import RunFolderError, SubspaceError, reading
from routed_rl.linalg import orthonormal, orthonormality_error
from routed_rl.shapes import fits

RECORD = {"provenance": {"method": str, "model": str, "model_hash": str, "width": int, "layers": int, "rank": int | None,
                         "prompts": str, "prompts_hash": str, "details": dict[str, Any]},
          "axis_names": list[str], "quality": dict[str, Any]}
"""The keys of `subspace.json` and the types of their values."""
FILES = {"subspace.safetensors", "subspace.json", SEAL}
"""The files in the folder of a saved subspace."""


@dataclass(frozen=True)
class Provenance:
    """Facts about where a subspace comes from. They are enough to refuse the subspace for any model but its own."""

    method: str
    model: str
    """The `model.path` from which the subspace was extracted."""
    model_hash: str
    width: int
    layers: int
    rank: int | None
    """The rank that the settings asked for; None if the strength of the directions decided."""
    prompts: str = ""
    prompts_hash: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def hook(self) -> str:
        """The hook point at which the stream was read."""
        return self.details.get("hook", "resid_post")


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions that tell personas apart, in every layer's output, and named axes along which shifts are reported.

    Shape letters: L layers, D stream width, K_l rank of layer l, J named axes, S sampled activations.
    """

    directions: list[Tensor]
    """For each layer, orthonormal columns (D, K_l), the strongest first."""
    axes: list[Tensor]
    """For each layer, the named axes as columns (D, J), which point to the positive persona. A column has length 1, or 0 if the
    layer lacks the axis."""
    axis_names: list[str]
    scales: Tensor
    """(L, J): the length in the stream that counts as a shift of 1 along each axis."""
    units: Tensor
    """(L,): the gap between the personas at each layer, which is the unit of the limit `routing.quarantine.max_shift`."""
    stream: Tensor
    """(L, S, D): a sample of the base model's activations, centred, for random bases that have the stream's covariance."""
    provenance: Provenance
    quality: dict[str, Any] = field(default_factory=dict)
    spreads: list[Tensor] | None = None
    """For each layer (K_l,): the length in the stream that counts as a shift of 1 along each direction. None if the axes after
    the first one are the directions; `scales[:, 1:]` then has these lengths."""

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
        """SubspaceError if a layer is missing, if a tensor has a wrong shape or type, or if a number is not finite."""
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
        """Return one basis (D, K) for each layer l. The changes of a writer are split at the basis of the layer at which its
        output was first read; with the hook resid_post, this is the writer's own layer. With the `layout` `per_layer` the basis
        spans the directions of layer l. With `spanning` the basis spans the directions of layer l and all later layers, so that a
        contained cotangent has no component in any later layer's subspace. With `shared` there is one basis for all layers, which
        spans the directions of all layers and has a rank of at most `shared_rank`. `drop_below`: the share of the largest
        singular value below which a direction of the span is dropped."""
        if layout == "per_layer":
            return [basis.clone() for basis in self.directions]  # a resumed run writes the bases of its checkpoint into them
        # Weighted by strength: layers mostly rotate the same few directions, and the rest hardly tells the personas apart.
        weighted = [basis * self.strengths(layer) for layer, basis in enumerate(self.directions)]
        if layout == "shared":
            everything = orthonormal(torch.cat(weighted, dim=1), drop_below=drop_below)
            return [everything[:, :shared_rank]] * len(self.directions)
        return [orthonormal(torch.cat(weighted[layer:], dim=1), drop_below=drop_below) for layer in range(len(weighted))]

    def strengths(self, layer: int) -> Tensor:
        """Return the distance between the personas along each direction of a layer, (K_l,), in units of the gap at that layer."""
        rank = self.directions[layer].shape[1]
        return (self.scales[layer, 1:1 + rank] if self.spreads is None else self.spreads[layer]) / self.units[layer]

    def layer_weights(self, axis: str | None = None) -> Tensor:
        """Return the weight of each layer in a mean over layers of the shift along an axis, (L,). `axis`: its name; None: the
        first axis, which is the persona axis.

        The weight is 2 AUROC - 1 of the axis on held-out prompts, at least 0. It is 0 if the axis does not tell the personas
        apart at a layer; there the gap, which is the unit of the shift, is tiny, and any change would be many gaps. An axis that
        was not measured by itself (see `measures`), or whose weights would all be 0, has the weights of the first axis, and if
        these would all be 0 too, the weight 1. A layer without the axis has the weight 0 in any case; only if no layer has the
        axis, so that there is no shift, all weights are 1."""
        column = 0 if axis is None else self.axis_names.index(axis)
        having = torch.tensor([float(bool(axes[:, column].any())) for axes in self.axes])
        known = [self.aurocs(self.axis_names[each]) for each in dict.fromkeys((column, 0))]
        weights = [torch.tensor([0.0 if value is None else max(2 * value - 1, 0.0) for value in found]) for found in known]
        ways = [found * having for found in weights if len(found) == len(having)]
        return next((found for found in (*ways, having) if bool(found.any())), torch.ones_like(having))

    def measures(self, axis: str) -> bool:
        """Whether it was measured how well the axis of this name, by itself, tells the personas apart on held-out prompts."""
        return any(value is not None for value in self.aurocs(axis))

    def aurocs(self, axis: str) -> list[float | None]:
        """Return the AUROC of the axis of this name on held-out prompts, by layer; None where it was not measured. For the first
        axis it is measured with the directions, and for each axis by `measure_axes`. The list is empty if nothing was
        measured."""
        rows = self.quality.get("layers", []) if axis == self.axis_names[0] else []
        if any(row.get("auroc") is not None for row in rows):
            return [row.get("auroc") for row in rows]
        rows = (self.quality.get("axes") or {}).get("layers", [])
        return [row.get("auroc", {}).get(axis) for row in rows]

    def check_model(self, *, model: str, model_hash: str, width: int, layers: int) -> None:
        """SubspaceError, which names the difference, unless the described model is the one from which this subspace was
        extracted. `model`: the path of the described model, for the message. `model_hash`: the hash of its weights. `width`: the
        width of its stream. `layers`: the number of its layers."""
        ours = self.provenance
        if (ours.width, ours.layers) != (width, layers):
            raise SubspaceError(f"the subspace has {ours.layers} layers of width {ours.width} but {model} has {layers} of "
                                f"width {width}; it was extracted from {ours.model}: extract one from {model}")
        if ours.model_hash != model_hash:
            raise SubspaceError(f"the subspace was extracted from {ours.model} (weights {ours.model_hash[:12]}), not from "
                                f"{model} (weights {model_hash[:12]}; in another dtype they count as others): extract one from "
                                f"{model}")

    def save(self, folder: str | Path) -> None:
        """Write `subspace.safetensors` and `subspace.json` into a new sealed folder. Either both are written or none. A folder
        that holds a subspace and nothing else is replaced; RunFolderError if anything else is there."""
        folder = Path(folder).expanduser().absolute()
        if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - FILES):
            raise RunFolderError(f"subspace.save({str(folder)!r}) would replace what is there; give a folder that does not exist")
        check_above(folder, f"subspace.save({str(folder)!r})")
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
        folder = Path(folder).expanduser()
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
    """Return `tensor` in float32 (float64 stays). SubspaceError if its shape is not `shape` (in which None stands for any size),
    if it has an integer type, or if a number is not finite. `name` begins the message, and `way_out` ends it."""
    check_shape(name, tensor.shape, shape, way_out)
    if not tensor.is_floating_point():
        raise SubspaceError(f"{name}: the numbers are {tensor.dtype}, not float32; {way_out}")
    if not bool(tensor.isfinite().all()):
        raise SubspaceError(f"{name}: a number is nan or infinite; {way_out}")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def check_shape(name: str, found: Sequence[int], shape: tuple[int | None, ...], way_out: str) -> None:
    """SubspaceError if the sizes `found` of a tensor are not those of `shape`, in which None stands for any size. `name` begins
    the message, and `way_out` ends it."""
    if len(found) != len(shape) or any(wanted not in (None, size) for size, wanted in zip(found, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise SubspaceError(f"{name}: the shape is ({', '.join(map(str, found))}), not ({wanted}); {way_out}")
