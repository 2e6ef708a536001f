"""Checks whether a library trainer can go on from a checkpoint: the script must give the model, the mode and the LoRA's scaling
with which the run began. Files of weights cannot tell, since they fit another model of the same shapes as well."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from routed_rl.artifacts import ADAPTER_CONFIG, read_json
from routed_rl.checkpoint import QUARANTINE, going_on_from
from routed_rl.errors import CheckpointError

SCALING = ("lora_alpha", "use_rslora")
"""The settings of a LoRA that change what its factors mean and not their shapes."""


def check_origin(checkpoint: Path, mode: str, model_hash: str | None, lora: Any) -> None:
    """CheckpointError if the run of a checkpoint had another routing mode than `mode`, began from a model of another hash than
    `model_hash` (None: not known), or trained a LoRA with another scaling than `lora`, PEFT's settings (None: no LoRA)."""
    stored = _metadata(checkpoint / QUARANTINE)
    if (had := stored.get("mode", "none")) != mode:
        raise CheckpointError(f"{checkpoint} is of a run with routing.mode={had}, and this trainer has routing.mode={mode}; give "
                              "the same mode, or set another args.output_dir")
    if model_hash is not None and (had := stored.get("model_hash", model_hash)) != model_hash:
        raise CheckpointError(f"{checkpoint} is of a run that began from another model (weights {had[:12]}, here "
                              f"{model_hash[:12]}); give that model, or set another args.output_dir")
    file = checkpoint / ADAPTER_CONFIG
    if lora is not None and file.exists():
        with going_on_from(file):
            kept = read_json(file)
        for name in SCALING:
            if (had := kept.get(name)) != getattr(lora, name):
                raise CheckpointError(f"{checkpoint} is of a run with {name}={had}, and the LoRA here has "
                                      f"{name}={getattr(lora, name)}; give the same one, or set another args.output_dir")


def _metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a checkpoint's quarantine; empty if the run had none."""
    if not file.exists():
        return {}
    with going_on_from(file), safe_open(file, "pt") as opened:
        return opened.metadata() or {}
