"""Exports the LoRA of a run as one stock model: the base model with the LoRA merged into it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import KEPT
from routed_rl.export.publish import Finish, publish
from routed_rl.model.adapter import merge
from routed_rl.model.load import write_generation_config


def merged(write: Callable[[Path, Finish], Path], out: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
           finish: Finish | None = None) -> Path:
    """Write a base model, with a LoRA merged into it, to `out` as one stock model. `write` makes the LoRA: it gets a path to
    write to and a `Finish`, and returns the path of the LoRA. `model` is the base model, which is changed in place. `finish`
    changes the folder that becomes `out` before it is sealed."""
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
