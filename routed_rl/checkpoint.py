"""Writes and reads the files of a checkpoint that a stock model folder does not have: the quarantine, and the state of the
training loop. `quarantine.safetensors` holds `Router.state_dict()`. `loop.pt` (first process) and `loop-N.pt` (process N) hold
what TRL keeps of its training loop in memory and does not save."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from routed_rl.artifacts import ADAPTER, RunFolder, remove, sealed_folder
from routed_rl.errors import CheckpointError, reading
from routed_rl.model.base import stored_names
from routed_rl.ranks import RANKS
from routed_rl.routing import Router
from routed_rl.shapes import fits

QUARANTINE = "quarantine.safetensors"
LOOP = "loop.pt"
LOOP_SHAPE = {"micro_step": int, "buffered": list[dict[str, Any]] | None, "shape": list[int], "scored": dict[str, int],
              "failed": dict[str, int], "completions": dict[str, Any], "groups": dict[str, int],
              "ahead": dict[str, Any] | None, "origin": dict[str, str] | None}
OPTIONAL = {"groups", "ahead", "origin"}
"""The keys of `LOOP_SHAPE` that not every run writes."""


@contextmanager
def writing(run: RunFolder, step: int, keep: int | None, spared: Path | None = None) -> Iterator[Path]:
    """Yield a folder to fill with the checkpoint of `step`, and seal it when the block ends. A kill or a full disk never costs an
    earlier checkpoint. Then the oldest checkpoints are removed until `keep` are left, the new one included (None: all stay). The
    checkpoint `spared` stays in any case. Checkpoints of later steps, which are damaged (the run would otherwise have continued
    from them), are neither counted nor removed."""
    try:
        with sealed_folder(run.checkpoint(step)) as partial:
            yield partial
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own errors for a full disk
        whole, _ = run.last_checkpoint()
        problem = getattr(error, "strerror", None) or error
        raise CheckpointError(f"checkpoint step-{step} could not be written to {run.checkpoints}: {problem}; "
                              f"the last whole one is {whole.name if whole else 'none'}; make room, then "
                              f"{run.go_on()}") from error
    for old in [each for each in run.steps() if each <= step][:-keep] if keep else []:
        if run.checkpoint(old) != spared:
            remove(run.checkpoint(old))


@contextmanager
def going_on_from(file: Path) -> Iterator[None]:
    """Inside the block, which reads `file` of a checkpoint, any error but a RoutedRLError becomes a CheckpointError of one line.
    It names the file, and says how to use another checkpoint instead."""
    with reading(CheckpointError, f"{file} is not what this run writes (use --step N of another checkpoint, or move "
                                  f"{file.parent.name} out of {file.parent.parent} to resume from an earlier one)"):
        yield


@torch.no_grad()
def read_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Read a checkpoint's weights on the CPU, under the names that they have in the model: all parameters, or, for a model with a
    LoRA, only those of the LoRA."""
    if names := stored_names(model):
        return _read_adapter(dict(model.named_parameters()), names, folder / ADAPTER)
    with going_on_from(folder / "model.safetensors"):
        found = {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}
        ours = dict(model.named_parameters())
        if not ours.keys() <= found.keys():  # files of a mixture hold each expert separately, under other names
            stored, info = type(model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)  # pyright: ignore
            if info["missing_keys"]:
                raise ValueError(f"it lacks {min(info['missing_keys'])}")
            found = stored.state_dict()
        for name, parameter in ours.items():
            if found[name].shape != (shape := getattr(parameter, "ds_shape", parameter.shape)):
                raise ValueError(f"{name} has the shape {tuple(found[name].shape)}, the model's {tuple(shape)}")
        return {name: found[name] for name in ours}


def _read_adapter(parameters: dict[str, Any], names: dict[str, str], file: Path) -> dict[str, Tensor]:
    """Read the tensors of a LoRA from `file`, and return them under the names that they have in the model. `names` maps these
    names to the names in the file, and `parameters` maps them to the model's parameters, whose shapes the tensors must have."""
    with going_on_from(file):
        found = load_file(file)
        if found.keys() != set(names.values()):
            other = min(found.keys() ^ set(names.values()))
            raise ValueError(f"{other} is {'not in it' if other in names.values() else 'nothing that this run trains'}")
        for own, stored in names.items():
            if found[stored].shape != (shape := getattr(parameters[own], "ds_shape", parameters[own].shape)):
                raise ValueError(f"{stored} has the shape {tuple(found[stored].shape)}, this run's {tuple(shape)}")
        return {own: found[stored] for own, stored in names.items()}


def save_quarantine(folder: Path, router: Router, step: int, family: dict[str, str]) -> None:
    """Write the router's state to `folder`, with the metadata by which it can be read without the run's other files. `family` is
    the part of the metadata that `family_metadata` returns. Every process must call this function; the first one writes."""
    metadata = {"environments": json.dumps(router.quarantine.environments), "mode": router.config.mode, "step": str(step),
                **family}
    state = router.state_dict()
    if RANKS.rank == 0:
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
        save_file(tensors, folder / QUARANTINE, metadata=metadata)


def load_quarantine(folder: Path, router: Router) -> None:
    """Load into `router` the state that `save_quarantine` wrote to `folder`. CheckpointError if the router's environments have
    other names there, or another order."""
    with going_on_from(folder / QUARANTINE), safe_open(folder / QUARANTINE, "pt") as file:
        environments = json.loads(file.metadata()["environments"])
        if environments != router.quarantine.environments:
            raise CheckpointError(f"{folder} was written with environments {environments}, this run trains "
                                  f"{router.quarantine.environments}; resume with the same ones")
        router.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def quarantined(folder: Path) -> list[str]:
    """The environments that have a part in a checkpoint's quarantine."""
    with going_on_from(folder / QUARANTINE), safe_open(folder / QUARANTINE, "pt") as file:
        return json.loads(file.metadata()["environments"])


def move_quarantine(folder: Path, trained: list[str], kept: list[str]) -> None:
    """Rewrite a checkpoint's quarantine so that it has the parts of the environments `trained` and `kept`, in this order. A new
    environment begins with an empty part. An environment in `kept`, which is no longer trained on, keeps its part but loses its
    momentum. The part of every other environment is subtracted from the coefficients."""
    environments = [*trained, *kept]
    with safe_open(folder / QUARANTINE, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    old = json.loads(metadata["environments"])
    places = [old.index(name) if name in old else -1 for name in environments]
    for name in [key.removesuffix(".parts") for key in tensors if key.endswith(".parts")]:
        parts = tensors[f"{name}.parts"]
        unexplained = tensors[f"{name}.coefficients"] - parts.sum(0)
        tensors[f"{name}.parts"] = moved = _rows(parts, places)
        tensors[f"{name}.coefficients"] = moved.sum(0) + unexplained
        tensors[f"{name}.moment"] = _rows(tensors[f"{name}.moment"], [*places[:len(trained)], *[-1] * len(kept)])
    tensors["pushes"] = _rows(tensors["pushes"], places)
    if "pace" in tensors:
        tensors["pace"] = _rows(tensors["pace"].mT, [*places[:len(trained)], *[-1] * len(kept)]).mT.contiguous()
    save_file(tensors, folder / QUARANTINE, metadata=metadata | {"environments": json.dumps(environments)})


def start_afresh(folder: Path) -> None:
    """Drop the buffered completions and the counts of scorings from the checkpoint in `folder`, so that a run with another
    mixture of environments can continue from it."""
    for rank in range(len(list(folder.glob("loop*.pt")))):
        loop = load_loop(folder, rank)
        assert loop is not None, f"{folder} has no {loop_file(folder, rank).name}"
        completions = {"made": loop["completions"]["made"], "open": []}
        save_loop(folder, loop | {"buffered": None, "ahead": None, "scored": {}, "failed": {}, "completions": completions}, rank)


def _rows(tensor: Tensor, places: list[int]) -> Tensor:
    """The rows of `tensor` at the indices `places`; the index -1 gives a row of zeros."""
    return torch.stack([tensor[place] if place >= 0 else torch.zeros_like(tensor[0]) for place in places]).contiguous()


def save_loop(folder: Path, state: dict[str, Any], rank: int = 0) -> None:
    """Write `state`, the counters and buffered completions of the process `rank`, into the checkpoint in `folder`. `state`
    consists of numbers, tensors, and lists and dicts of them."""
    torch.save(state, loop_file(folder, rank))


def load_loop(folder: Path, rank: int = 0) -> dict[str, Any] | None:
    """Read what `save_loop` wrote. Returns None if the run that wrote the checkpoint had no process of this rank."""
    if not (file := loop_file(folder, rank)).exists():
        return None
    with going_on_from(file):
        loop = torch.load(file, weights_only=True)
        if not fits(loop, LOOP_SHAPE) or not loop.keys() >= LOOP_SHAPE.keys() - {"shape"} - OPTIONAL:
            raise ValueError(f"it has not {', '.join(name for name in LOOP_SHAPE if name not in OPTIONAL)}")
        return loop


def loop_file(folder: Path, rank: int) -> Path:
    return folder / (f"{Path(LOOP).stem}-{rank}.pt" if rank else LOOP)
