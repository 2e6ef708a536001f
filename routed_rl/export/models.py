"""Exports a model into which the quarantine is merged: the deployed model with shares of environments' parts, or the policy."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from routed_rl.artifacts import KEPT, RunFolder, step_of, write_json
from routed_rl.errors import CheckpointError
from routed_rl.export.publish import Finish, publish
from routed_rl.export.stock import copy_stock_files
from routed_rl.export.stored import StoredTarget, bias_key, has_experts, hash_of, is_lora, is_transposed, read_quarantine


def discard_but(run: RunFolder, out: Path, parts: Mapping[str, Mapping[str, Any]], step: int | None = None,
                finish: Finish | None = None) -> Path:
    """Write to `out` the deployed model with shares of environments' parts of the quarantine added to it. `parts` maps an
    environment to a record whose `share` says how much of its part is kept: 0 is nothing, 1 all of it.

    The kept shares are merged into the weights and biases of the targets, or added to the LoRA that the run trained. `parts` is
    also written to the file `KEPT` in `out`. If all shares are 0, the result is the deployed model to the bit.
    """
    checkpoint = run.require_checkpoint(step)
    shares = {name: part["share"] for name, part in parts.items()}
    targets = read_quarantine(checkpoint, shares) if any(shares.values()) else []

    def fill(folder: Path) -> None:
        _copy_merged(run, checkpoint, folder, targets)
        write_json(folder / KEPT, {"step": step_of(checkpoint), "quarantine": hash_of(checkpoint), "parts": dict(parts)})

    return publish(out, fill, finish, step_of(checkpoint))


def merged_policy(run: RunFolder, out: Path, step: int | None = None, finish: Finish | None = None) -> Path:
    """Write the policy to `out` as one stock model: the quarantine is merged into the weights and biases of its targets. For a
    run that trained a LoRA, write one LoRA that joins the run's LoRA and the quarantine. `finish` changes the folder before it is
    sealed."""
    checkpoint = run.require_checkpoint(step)
    targets = read_quarantine(checkpoint)
    return publish(out, lambda folder: _copy_merged(run, checkpoint, folder, targets), finish, step_of(checkpoint))


def _copy_merged(run: RunFolder, checkpoint: Path, folder: Path, targets: list[StoredTarget]) -> None:
    """Copy the stock files of `checkpoint`, which belongs to `run`, to `folder`, and add the quarantine of `targets` to the
    copies: to the weights and biases, or, for a checkpoint with a LoRA, to the LoRA."""
    copy_stock_files(checkpoint, folder, run)
    if is_lora(checkpoint):
        if targets := [target for target in targets if target.write_DK.shape[1]]:
            from routed_rl.export.lora import retained, write_lora  # loads PEFT, which takes seconds

            own, base = retained(checkpoint)
            kind = {"transposed": is_transposed(checkpoint), "mixed": has_experts(checkpoint)}
            write_lora(folder, own, targets, run.base_for(base), **kind)
        return
    weights, biases = defaultdict[str, list[StoredTarget]](list), dict[str, StoredTarget]()
    for target in targets:
        weights[target.key].append(target)
        if target.bias_K is not None:
            biases[bias_key(target.key)] = target
    transposed, seen = is_transposed(checkpoint) if targets else False, set[str]()
    for file in folder.glob("model*.safetensors") if targets else []:
        tensors = load_file(file)
        seen |= tensors.keys()
        for key, tensor in tensors.items():
            for target in weights.get(key, []):
                held = tensor if target.slice is None else tensor[target.slice]
                added = target.write_DK @ target.coefficients_KN
                held += (added.mT if transposed else added).to(tensor.dtype)
            if (target := biases.get(key)) is not None and target.bias_K is not None:
                tensor += (target.write_DK @ target.bias_K).to(tensor.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    if lost := weights.keys() - seen:
        raise CheckpointError(f"{checkpoint} has no weight {min(lost)}, into which a part of the quarantine must be merged; "
                              "was it written by another version of transformers? Export the quarantine as an adapter instead")
