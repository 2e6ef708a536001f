"""Exports the quarantine as a stock PEFT adapter. Shape letters: D stream width, K rank, N input width."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from routed_rl.artifacts import KEPT, SEAL, RunFolder, read_object, require_seal, step_of
from routed_rl.checkpoint import quarantined
from routed_rl.errors import CheckpointError
from routed_rl.export.lora import retained, write_lora
from routed_rl.export.publish import Finish, publish
from routed_rl.export.stored import has_experts, hash_of, is_lora, is_transposed, read_quarantine


def export_quarantine(run: RunFolder, out: Path, environment: str | None = None, step: int | None = None,
                      kept: Path | None = None, finish: Finish | None = None) -> Path:
    """Write the quarantine, or the part of one environment, to `out` as a stock PEFT LoRA. `kept` is a folder that `discard_but`
    wrote; with it, write only the rest of the quarantine, which is missing in that folder. `finish` changes the new folder before
    it is sealed.

    The deployed model with this adapter on it, `PeftModel.from_pretrained(deployed, out)`, has the policy's logits. If `kept` is
    given, the adapter goes on the model in `kept` instead. `lora_A` holds the coefficients C (K, N), `lora_B` the matrix (D, K)
    by which they are multiplied, and every alpha equals its rank. For a run that trained a LoRA, the adapter belongs to the base
    model and must be active together with the deployed LoRA, unless `kept` is a plain model into which the deployed LoRA was
    merged. Targets of rank 0 are left out. In modes other than `route` the parts do not sum to the whole.
    """
    checkpoint = run.require_checkpoint(step)
    shares = {environment: 1.0} if environment else _missing_in(kept, checkpoint) if kept else None
    targets = [target for target in read_quarantine(checkpoint, shares) if target.write_DK.shape[1]]
    if not targets:
        raise CheckpointError(f"the quarantine of {run.path} has rank 0 everywhere, so there is no adapter to write; "
                              "the policy is the deployed model: use `routed-rl discard`")
    if is_lora(checkpoint) and (kept is None or is_lora(kept)):
        base = run.base_for(retained(checkpoint)[1])
    else:
        base = str(kept.absolute() if kept else run.deployed if _is_deployed(run.deployed, checkpoint) else checkpoint)
    kind = {"transposed": is_transposed(checkpoint), "mixed": has_experts(checkpoint)}
    return publish(out, lambda folder: write_lora(folder, {}, targets, base, **kind), finish, step_of(checkpoint))


def _is_deployed(folder: Path, checkpoint: Path) -> bool:
    """Whether a folder holds the deployed model of this checkpoint. A model of another step, or one that keeps shares of parts,
    does not count."""
    ours, theirs = (read_object(place / SEAL, {}) or {} for place in (checkpoint, folder))
    weights = {name for name in ours if fnmatch(name, "model*.safetensors")}
    return bool(weights) and not (folder / KEPT).exists() and all(ours[name] == theirs.get(name) for name in weights)


def _missing_in(kept: Path, checkpoint: Path) -> dict[str, float]:
    """For each environment, the share of its part of the quarantine in `checkpoint` that the model in `kept` lacks. `kept` is a
    folder that `discard_but` wrote; CheckpointError if it was made from another quarantine."""
    require_seal(kept)
    told = read_object(kept / KEPT, {"parts": dict[str, dict[str, Any]], "quarantine": str})
    if not told or told.get("quarantine") != hash_of(checkpoint):
        raise CheckpointError(f"--kept {kept}: {'it keeps parts of another checkpoint' if told else f'it has no {KEPT}'}; give "
                              f"a folder that `routed-rl discard --keep` wrote, and its step, of {checkpoint}")
    return {name: 1 - told["parts"].get(name, {"share": 0.0})["share"] for name in quarantined(checkpoint)}
