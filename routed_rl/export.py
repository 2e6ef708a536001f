"""What leaves a run: the deployed model, the policy merged into one model, the quarantine as a stock PEFT adapter.

Opens the files of one checkpoint, never a trainer or a model. Shape letters: D stream width, K rank, N input width.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from routed_rl.artifacts import SEAL, RunFolder, alone_making, broken_seal, read_json, sealed_folder, write_json
from routed_rl.checkpoint import QUARANTINE
from routed_rl.errors import CheckpointError, ConfigError, RunFolderError
from routed_rl.model.targets import FAMILIES, Family

STOCK_FILES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
               "model-*-of-*.safetensors", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
               "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
               "chat_template.jinja", "chat_template.json")
"""Of a model folder, as `save_pretrained` of a model and a tokenizer writes them."""


@dataclass(frozen=True)
class StoredTarget:
    """One target of a checkpoint: `A` is what the coefficients are written with."""

    name: str
    stored: str
    """The name of its weight in the checkpoint's files."""
    mixture: str | None
    """Of an expert, the parameter that holds all of its mixture's writers; None for a plain writer."""
    write_DK: Tensor
    coefficients_KN: Tensor
    """The weight's columns alone."""
    bias_K: Tensor | None


def discard(run: RunFolder, out: Path, step: int | None = None) -> Path:
    """Write the deployed model to `out`: the stock files of a checkpoint (default: the last) and nothing of the quarantine.

    Doing it again is fine; an `out` that holds anything else is refused.
    """
    checkpoint = run.require_checkpoint(step)
    return publish(out, lambda folder: copy_stock_files(checkpoint, folder))


def merged_policy(run: RunFolder, out: Path, step: int | None = None) -> Path:
    """Write the policy to `out` as one stock model, `W + A C`, bias included."""
    checkpoint = run.require_checkpoint(step)
    targets = {target.stored: target for target in read_quarantine(checkpoint)}
    transposed = _is_transposed(checkpoint)

    def fill(folder: Path) -> None:
        copy_stock_files(checkpoint, folder)
        for file in folder.glob("model*.safetensors"):
            tensors = load_file(file)
            for key, tensor in tensors.items():
                name, _, what = key.rpartition(".")
                if name in targets:
                    tensors[key] = _merged(tensor, what, targets[name], transposed)
            save_file(tensors, file, metadata={"format": "pt"})

    return publish(out, fill)


def export_quarantine(run: RunFolder, out: Path, environment: str | None = None, step: int | None = None) -> Path:
    """Write the quarantine, or one environment's part of it, to `out` as a stock PEFT LoRA.

    `PeftModel.from_pretrained(deployed, out)` has the policy's logits: `lora_A` is C (K, N), `lora_B` is A (D, K), every
    alpha equals its rank. Targets of rank 0 are left out. In modes other than `route` the parts do not sum to the whole.
    """
    checkpoint = run.require_checkpoint(step)
    targets = [target for target in read_quarantine(checkpoint, environment) if target.write_DK.shape[1]]
    if not targets:
        raise CheckpointError(f"the quarantine of {run.path} has rank 0 everywhere, so there is no adapter to write; "
                              "the policy is the deployed model: use `routed-rl discard`")
    ranks = {target.mixture or target.name: target.write_DK.shape[1] for target in targets}
    mixtures = sorted({target.mixture for target in targets if target.mixture})
    modules = sorted(set(ranks) - set(mixtures))
    base = run.deployed if run.deployed.is_dir() else checkpoint
    config = LoraConfig(task_type="CAUSAL_LM", inference_mode=True, base_model_name_or_path=str(base), bias="none",
                        target_modules=modules, target_parameters=mixtures or None,
                        r=max(ranks.values()), lora_alpha=max(ranks.values()),
                        rank_pattern=dict(ranks), alpha_pattern=dict(ranks), lora_dropout=0.0,
                        lora_bias=any(target.bias_K is not None for target in targets),
                        fan_in_fan_out=_is_transposed(checkpoint))

    def fill(folder: Path) -> None:
        config.save_pretrained(str(folder))
        # PEFT keeps target_modules as a set: sorted, so that the same adapter is the same file.
        written = read_json(folder / "adapter_config.json")
        write_json(folder / "adapter_config.json", {**written, "target_modules": modules})
        save_file(_adapter_tensors(targets, has_bias=bool(config.lora_bias)), folder / "adapter_model.safetensors",
                  metadata={"format": "pt"})

    return publish(out, fill)


def _adapter_tensors(targets: list[StoredTarget], *, has_bias: bool) -> dict[str, Tensor]:
    """The tensors under PEFT's own key names; with `has_bias` every plain writer gets a bias, zero where it has none."""
    tensors: dict[str, Tensor] = {}
    experts: dict[str, list[StoredTarget]] = {}
    for target in targets:
        if target.mixture:
            experts.setdefault(target.mixture, []).append(target)
            continue
        key = f"base_model.model.{target.name}"
        tensors[f"{key}.lora_A.weight"] = target.coefficients_KN.contiguous()
        tensors[f"{key}.lora_B.weight"] = target.write_DK.contiguous()
        if has_bias:
            bias = target.bias_K if target.bias_K is not None else target.write_DK.new_zeros(target.write_DK.shape[1])
            tensors[f"{key}.lora_B.bias"] = target.write_DK @ bias
    for mixture, those in experts.items():
        key = f"base_model.model.{mixture.rpartition('.')[0]}"
        tensors[f"{key}.lora_A.weight"] = torch.cat([target.coefficients_KN for target in those])
        # PEFT keeps an expert's columns apart by the number of experts.
        tensors[f"{key}.lora_B.weight"] = torch.stack([target.write_DK for target in those], 2).flatten(1).contiguous()
    return tensors


def read_quarantine(checkpoint: Path, environment: str | None = None) -> list[StoredTarget]:
    """Every target of a checkpoint, with the coefficients of all environments or of one; an unknown one is refused."""
    if not (checkpoint / QUARANTINE).exists():
        raise CheckpointError(f"{checkpoint} has no quarantine: the run was not routed (routing.mode=none); "
                              "its policy is the deployed model: use `routed-rl discard`")
    with safe_open(checkpoint / QUARANTINE, "pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    known: list[str] = json.loads(metadata.get("environments", "[]"))
    if environment is not None and environment not in known:
        raise ConfigError(f"the quarantine has no part of environment {environment}; it has: {', '.join(known)}")
    biased = {key.removesuffix(".bias") for key in _weight_keys(checkpoint) if key.endswith(".bias")}
    targets, row = [], _family(checkpoint)
    for name in (key.removesuffix(".coefficients") for key in state if key.endswith(".coefficients")):
        whole = state[f"{name}.coefficients"]
        chosen = whole if environment is None else state[f"{name}.parts"][known.index(environment)]
        weight, bias = (chosen[:, :-1], chosen[:, -1]) if name in biased else (chosen, None)
        write = state.get(f"{name}.write", state[f"{name}.basis"])
        stored, mixture = row.stored_names(name) if row else (name, None)
        targets.append(StoredTarget(name, stored, mixture, write, weight, bias))
    return targets


def copy_stock_files(source: Path, folder: Path) -> None:
    """Copy what makes up a stock model folder, and only that."""
    for pattern in STOCK_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def publish(out: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a sealed folder and move it to `out`; an `out` with the same content stays, any other content is refused."""
    out = Path(out).absolute()
    fresh = out.with_name(f".{out.name}.new")
    with alone_making(out):
        with sealed_folder(fresh) as folder:
            fill(folder)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            same = out.is_dir() and broken_seal(out) is None and read_json(out / SEAL) == read_json(fresh / SEAL)
            shutil.rmtree(fresh)
            if not same:
                raise RunFolderError(f"{out} already holds something else; give another folder, or remove it")
        else:
            os.replace(fresh, out)
    return out


def _merged(tensor: Tensor, what: str, target: StoredTarget, transposed: bool) -> Tensor:
    if what == "weight":
        added = target.write_DK @ target.coefficients_KN
        return tensor + (added.mT if transposed else added).to(tensor.dtype)
    assert what == "bias" and target.bias_K is not None, f"{target.name}.{what} is neither weight nor bias"
    return tensor + (target.write_DK @ target.bias_K).to(tensor.dtype)


def _family(checkpoint: Path) -> Family | None:
    return FAMILIES.get(read_json(checkpoint / "config.json")["model_type"])


def _is_transposed(checkpoint: Path) -> bool:
    row = _family(checkpoint)
    return row is not None and row.transposed


def _weight_keys(checkpoint: Path) -> set[str]:
    keys: set[str] = set()
    for path in checkpoint.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            keys |= set(file.keys())
    return keys
