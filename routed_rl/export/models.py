"""Export as one stock model: the deployed model, alone or with shares of environments' parts, and the policy."""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import SEAL, RunFolder, alone_making, broken_seal, read_json, sealed_folder, step_of, write_json
from routed_rl.errors import RunFolderError
from routed_rl.export.lora import retained, write_lora
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


def discard(run: RunFolder, out: Path, step: int | None = None) -> Path:
    """Write the deployed model to `out`: the stock files of a checkpoint (default: the last) and nothing of the quarantine.

    It may be called again for the same `out`; RunFolderError for an `out` that holds anything else.
    """
    checkpoint = run.require_checkpoint(step)
    return publish(out, lambda folder: copy_stock_files(checkpoint, folder))


def discard_but(run: RunFolder, out: Path, parts: Mapping[str, Mapping[str, Any]], step: int | None = None) -> Path:
    """Write the deployed model to `out`, with the `share` of each of these environments' parts merged into its weights,
    `W + A Σ share_e C_e`, bias included, or added to its LoRA. All entries of `parts` are written to its file `KEPT`. With
    shares of 0 it is the deployed model, to the bit."""
    checkpoint = run.require_checkpoint(step)
    shares = {name: part["share"] for name, part in parts.items()}
    targets = read_quarantine(checkpoint, shares) if any(shares.values()) else []

    def fill(folder: Path) -> None:
        _copy_merged(checkpoint, folder, targets)
        write_json(folder / KEPT, {"step": step_of(checkpoint), "quarantine": hash_of(checkpoint), "parts": dict(parts)})

    return publish(out, fill)


def merged_policy(run: RunFolder, out: Path, step: int | None = None) -> Path:
    """Write the policy to `out` as one stock model, `W + A C`, bias included. For a run that trained a LoRA, write one LoRA."""
    checkpoint = run.require_checkpoint(step)
    targets = read_quarantine(checkpoint)
    return publish(out, lambda folder: _copy_merged(checkpoint, folder, targets))


def merged(write: Callable[[Path], Path], out: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write one stock model to `out`: the base model `model`, changed in place, into which the LoRA that `write` writes is
    merged."""
    with TemporaryDirectory(prefix="routed_rl-") as place:
        adapter = write(Path(place) / "adapter")
        whole = merge(model, adapter)

        def fill(folder: Path) -> None:
            whole.save_pretrained(folder)
            write_generation_config(whole, folder)
            tokenizer.save_pretrained(folder)
            if (adapter / KEPT).exists():
                shutil.copyfile(adapter / KEPT, folder / KEPT)

        return publish(out, fill)


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


def publish(out: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a sealed folder and move it to `out`. An `out` with the same content stays as it is; RunFolderError for any other
    content."""
    out = Path(out).absolute()
    fresh = out.with_name(f".{out.name}.new")
    with alone_making(out):
        with sealed_folder(fresh) as folder:
            fill(folder)
        if _is_taken(out):
            sealed = read_json(fresh / SEAL)
            shutil.rmtree(fresh)
            refuse_foreign(out, sealed)
        else:
            os.replace(fresh, out)
    return out


def refuse_foreign(out: Path, sealed: object = None) -> None:
    """RunFolderError for an `out` that `publish` has not written. With `sealed`, also for an `out` with another content than
    that."""
    if _is_taken(out) and (not out.is_dir() or broken_seal(out) or (sealed and read_json(out / SEAL) != sealed)):
        raise RunFolderError(f"{out} already holds something else; give another folder, or remove it")


def _is_taken(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))
