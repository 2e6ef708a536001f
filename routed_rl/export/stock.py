"""Writes the deployed model of a run by copying the stock files of a checkpoint. It needs no torch."""

import shutil
from pathlib import Path

from routed_rl.artifacts import ADAPTER, ADAPTER_CONFIG, BASE, RunFolder, read_json, step_of, write_json
from routed_rl.export.publish import Finish, publish

STOCK_FILES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
               "model-*-of-*.safetensors", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
               "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
               "chat_template.jinja", "additional_chat_templates/*.jinja", "chat_template.json", ADAPTER, ADAPTER_CONFIG)
"""The files of a model folder or an adapter, as `save_pretrained` of a model and a tokenizer writes them."""


def discard(run: RunFolder, out: Path, step: int | None = None, finish: Finish | None = None) -> Path:
    """Write the deployed model to `out`: the stock files of a checkpoint (default: the last), without the quarantine. `finish`
    changes the folder before it is sealed.

    If `out` holds this model already, it stays as it is. RunFolderError if `out` holds anything else.
    """
    checkpoint = run.require_checkpoint(step)
    return publish(out, lambda folder: copy_stock_files(checkpoint, folder, run), finish, step_of(checkpoint))


def copy_stock_files(source: Path, folder: Path, run: RunFolder | None = None) -> None:
    """Copy the files of a stock model folder, and no others. `run`: the run to which `source` belongs; an adapter's copy names
    the base model where it is now, which may differ from where it was when the run wrote `source`."""
    for pattern in STOCK_FILES:
        for file in source.glob(pattern):
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    if run is not None and (file := folder / ADAPTER_CONFIG).exists():
        settings = read_json(file)
        write_json(file, settings | {BASE: run.base_for(settings[BASE])})
