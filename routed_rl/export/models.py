"""Export as one stock model: the deployed model, alone or with shares of environments' parts, and the policy."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import RunFolder, step_of, write_json
from routed_rl.export.lora import retained, write_lora
from routed_rl.export.publish import Finish, publish
from routed_rl.export.stored import StoredTarget, bias_key, hash_of, is_lora, is_transposed, read_quarantine
from routed_rl.model.adapter import ADAPTER, CONFIG, merge
from routed_rl.model.load import write_generation_config

STOCK_FILES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
               "model-*-of-*.safetensors", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
               "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
               "chat_template.jinja", "chat_template.json", ADAPTER, CONFIG)
"""The files of a model folder or an adapter, as `save_pretrained` of a model and a tokenizer writes them."""
KEPT = "kept.json"
"""The file in the folder of a deployed model that keeps shares of parts. It records which shares, why, and of which
quarantine."""


def discard(run: RunFolder, out: Path, step: int | None = None, finish: Finish | None = None) -> Path:
    """Write the deployed model to `out`: the stock files of a checkpoint (default: the last) and nothing of the quarantine.
    `finish` changes the folder before it is sealed, here and in all functions of this unit.

    It may be called again for the same `out`; RunFolderError for an `out` that holds anything else.
    """
    checkpoint = run.require_checkpoint(step)
    return publish(out, lambda folder: copy_stock_files(checkpoint, folder), finish, step_of(checkpoint))


def discard_but(run: RunFolder, out: Path, parts: Mapping[str, Mapping[str, Any]], step: int | None = None,
                finish: Finish | None = None) -> Path:
    """Write the deployed model to `out`, with the `share` of each of these environments' parts merged into its weights,
    `W + A Σ share_e C_e`, bias included, or added to its LoRA. All entries of `parts` are written to its file `KEPT`. With
    shares of 0 it is the deployed model, to the bit."""
    checkpoint = run.require_checkpoint(step)
    shares = {name: part["share"] for name, part in parts.items()}
    targets = read_quarantine(checkpoint, shares) if any(shares.values()) else []

    def fill(folder: Path) -> None:
        _copy_merged(checkpoint, folder, targets)
        write_json(folder / KEPT, {"step": step_of(checkpoint), "quarantine": hash_of(checkpoint), "parts": dict(parts)})

    return publish(out, fill, finish, step_of(checkpoint))


def merged_policy(run: RunFolder, out: Path, step: int | None = None, finish: Finish | None = None) -> Path:
    """Write the policy to `out` as one stock model, `W + A C`, bias included. For a run that trained a LoRA, write one LoRA."""
    checkpoint = run.require_checkpoint(step)
    targets = read_quarantine(checkpoint)
    return publish(out, lambda folder: _copy_merged(checkpoint, folder, targets), finish, step_of(checkpoint))


def merged(write: Callable[[Path, Finish], Path], out: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
           finish: Finish | None = None) -> Path:
    """Write one stock model to `out`: the base model `model`, changed in place, into which the LoRA is merged that `write` writes
    to a path, with the `Finish` that it is given."""
    steps: list[int] = []
    with TemporaryDirectory(prefix="routed_rl-") as place:
        adapter = write(Path(place) / "adapter", lambda _, step: steps.append(step))
        whole = merge(model, adapter)

        def fill(folder: Path) -> None:
            whole.save_pretrained(folder)
            write_generation_config(whole, folder)
            tokenizer.save_pretrained(folder)
            if (adapter / KEPT).exists():
                shutil.copyfile(adapter / KEPT, folder / KEPT)

        return publish(out, fill, finish, steps[0])


def _copy_merged(checkpoint: Path, folder: Path, targets: list[StoredTarget]) -> None:
    """Copy the stock files, and merge the coefficients of `targets` into their weights or add them to the factors of their
    LoRA."""
    copy_stock_files(checkpoint, folder)
    if is_lora(checkpoint):
        if targets := [target for target in targets if target.write_DK.shape[1]]:
            own, base = retained(checkpoint)
            write_lora(folder, own, targets, base, transposed=is_transposed(checkpoint))
        return
    weights, biases = defaultdict[str, list[StoredTarget]](list), dict[str, StoredTarget]()
    for target in targets:
        weights[target.key].append(target)
        if target.bias_K is not None:
            biases[bias_key(target.key)] = target
    transposed = is_transposed(checkpoint) if targets else False
    for file in folder.glob("model*.safetensors") if targets else []:
        tensors = load_file(file)
        for key, tensor in tensors.items():
            for target in weights.get(key, []):
                held = tensor if target.slice is None else tensor[target.slice]
                added = target.write_DK @ target.coefficients_KN
                held += (added.mT if transposed else added).to(tensor.dtype)
            if (target := biases.get(key)) is not None and target.bias_K is not None:
                tensor += (target.write_DK @ target.bias_K).to(tensor.dtype)
        save_file(tensors, file, metadata={"format": "pt"})


def copy_stock_files(source: Path, folder: Path) -> None:
    """Copy the files of a stock model folder, and no others."""
    for pattern in STOCK_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
