"""Checks whether a library trainer (one that `import routed_rl` offers) can go on from a checkpoint: the script must give the
model, the subspace, the mode and the LoRA with which the run began. The checkpoint's files of weights cannot show this, because
they also fit another model of the same shapes."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from routed_rl.artifacts import ADAPTER_CONFIG, read_json
from routed_rl.checkpoint import QUARANTINE, going_on_from, load_loop
from routed_rl.errors import CheckpointError
from routed_rl.routing import Router

SAME_LORA = ("r", "lora_alpha", "use_rslora", "target_modules")
"""The settings of a LoRA that decide what its factors are and do."""
SAME = 0.9
"""The smallest share of the targets' bases, as a mean over targets, that must lie in the checkpoint's bases. The share is 1 up to
rounding if a script extracts the same subspace once more, also on a GPU."""


def check_origin(checkpoint: Path, router: Router | None, model_hash: str | None, lora: Any) -> None:
    """CheckpointError if the run of a checkpoint had another routing mode or other bases than `router` (None: mode `none`), began
    from a model of another hash than `model_hash` (None: not known), or trained another LoRA than `lora` (PEFT's settings; None:
    it trained none)."""
    stored, mode = _metadata(checkpoint), router.config.mode if router is not None else "none"
    if (had := stored.get("mode", "none")) != mode:
        raise CheckpointError(f"{checkpoint} is of a run with routing.mode={had}, and this trainer has routing.mode={mode}; give "
                              "the same mode, or set another args.output_dir")
    if model_hash is not None and (had := stored.get("model_hash", model_hash)) != model_hash:
        raise CheckpointError(f"{checkpoint} is of a run that began from another model (weights {had[:12]}, here "
                              f"{model_hash[:12]}); give that model, or set another args.output_dir")
    if router is not None and (share := _shared(checkpoint / QUARANTINE, router)) < SAME:
        raise CheckpointError(f"{checkpoint} is of a run with another subspace, in which {share:.0%} of this one lies; give that "
                              "subspace, or set another args.output_dir")
    if (lora is not None) != (file := checkpoint / ADAPTER_CONFIG).exists():
        had, has = ("the weights", "a LoRA") if lora is not None else ("a LoRA", "the weights")
        raise CheckpointError(f"{checkpoint} is of a run that trained {had}, and this trainer trains {has}; "
                              f"{'leave peft_config out' if lora is not None else 'give its peft_config'}, or set another "
                              "args.output_dir")
    if lora is not None:
        with going_on_from(file):
            kept = read_json(file)
        for name in SAME_LORA:
            had, has = (sorted(each) if isinstance(each, set | list) else each for each in (kept.get(name), getattr(lora, name)))
            if had != has:
                raise CheckpointError(f"{checkpoint} is of a run with {name}={had}, and the LoRA here has {name}={has}; give the "
                                      "same one, or set another args.output_dir")


def _metadata(checkpoint: Path) -> dict[str, str]:
    """Return the metadata of a checkpoint's quarantine, or, if the run had none, what the checkpoint says of the run's start."""
    if not (file := checkpoint / QUARANTINE).exists():
        return (load_loop(checkpoint) or {}).get("origin") or {}
    with going_on_from(file), safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def _shared(file: Path, router: Router) -> float:
    """Return the share of the targets' bases that lies in the bases of a checkpoint's quarantine, from 0 to 1, as a mean over
    targets. Bases of another rank are left out, because a checkpoint that has them is refused when its quarantine is loaded."""
    shares = list[float]()
    with going_on_from(file), safe_open(file, "pt") as opened:
        for target in router.quarantine.targets:
            ours = target.pair.basis
            stored = opened.get_tensor(f"{target.name}.basis").to(ours)
            if target.rank and stored.shape == ours.shape:
                shares.append(float((stored.mT @ ours).square().sum()) / target.rank)
    return sum(shares) / len(shares) if shares else 1.0
