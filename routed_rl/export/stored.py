"""Reads the quarantine from a checkpoint's files, target by target. Shape letters: D stream width, K rank, N input width."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from routed_rl.artifacts import ADAPTER_CONFIG, SEAL, read_json
from routed_rl.checkpoint import QUARANTINE
from routed_rl.config import LABELS
from routed_rl.errors import CheckpointError, ConfigError
from routed_rl.model.families import FAMILIES, FAMILY, PLACES, Family
from routed_rl.routing import kept_of


@dataclass(frozen=True)
class StoredTarget:
    """One target of a checkpoint. The quarantine changes its weight by `write_DK` times the coefficients."""

    name: str
    key: str
    """The name of the target's weight in the checkpoint's files."""
    slice: int | None
    """Index of the weight in its tensor, if one tensor holds the weights of all experts of a mixture; None if the weight is the
    whole tensor."""
    mixture: str | None
    """If the target is one expert of a mixture of experts, the name of the parameter that holds the writers of all experts; None
    for a plain writer."""
    write_DK: Tensor
    coefficients_KN: Tensor
    """Coefficients of the weight, without those of the bias."""
    bias_K: Tensor | None


def read_quarantine(checkpoint: Path, shares: Mapping[str, float] | None = None) -> list[StoredTarget]:
    """Every target of a checkpoint with its coefficients. With `shares`, {environment: share}, the coefficients are the sum of
    these shares of the environments' parts. ConfigError for an unknown environment, CheckpointError if the checkpoint has no
    quarantine that could be exported."""
    if not (checkpoint / QUARANTINE).exists():
        raise CheckpointError(f"{checkpoint} has no quarantine: the run was not routed (routing.mode=none); "
                              "its policy is the deployed model: use `routed-rl discard`")
    with safe_open(checkpoint / QUARANTINE, "pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    if metadata.get("mode") == LABELS:
        raise CheckpointError(f"{checkpoint} was routed by labels, and its quarantine is no change at a subspace that could be "
                              "exported; use `routed-rl discard` for the deployed model")
    known: list[str] = json.loads(metadata.get("environments", "[]"))
    if unknown := [name for name in shares or {} if name not in known]:
        raise ConfigError(f"the quarantine has no part of environment {unknown[0]}; it has: {', '.join(known)}")
    keys, targets, row, places = _weight_keys(checkpoint), [], _family(checkpoint), json.loads(metadata.get(PLACES, "{}"))
    for name in (key.removesuffix(".coefficients") for key in state if key.endswith(".coefficients")):
        chosen = state[f"{name}.coefficients"]
        if shares is not None:
            chosen = kept_of(state[f"{name}.parts"], [shares.get(each, 0.0) for each in known])
        stored, mixture = row.stored_names(name) if row else (name, None)
        key, part = places.get(name, (f"{stored}.weight", None))
        biased = mixture is None and bias_key(key) in keys
        weight, bias = (chosen[:, :-1], chosen[:, -1]) if biased else (chosen, None)
        write = state.get(f"{name}.write", state[f"{name}.basis"])
        targets.append(StoredTarget(name, key, part, mixture, write, weight, bias))
    return targets


def bias_key(key: str) -> str:
    """The name, in a checkpoint's files, of the bias that belongs to a weight."""
    return f"{key.removesuffix('.weight')}.bias"


def hash_of(checkpoint: Path) -> str:
    return read_json(checkpoint / SEAL)[QUARANTINE]["sha256"]


def is_lora(checkpoint: Path) -> bool:
    """Whether the run trained a LoRA, so that the checkpoint has no weights of the model."""
    return (checkpoint / ADAPTER_CONFIG).exists()


def is_transposed(checkpoint: Path) -> bool:
    row = _family(checkpoint)
    return row is not None and row.transposed


def has_experts(checkpoint: Path) -> bool:
    """Whether some writers of the model are mixtures of experts."""
    row = _family(checkpoint)
    return row is not None and row.experts is not None


def _family(checkpoint: Path) -> Family | None:
    with safe_open(checkpoint / QUARANTINE, "pt") as file:
        if (found := (file.metadata() or {}).get(FAMILY)) is not None:
            return Family.from_json(found)
    return FAMILIES.get(read_json(checkpoint / "config.json")["model_type"])


def _weight_keys(checkpoint: Path) -> set[str]:
    keys: set[str] = set()
    for path in checkpoint.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            keys |= set(file.keys())
    return keys
