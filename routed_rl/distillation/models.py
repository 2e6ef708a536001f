"""The teacher, which must be the deployed model of a run, and the student, which begins as its copy.

Both are in memory at once; a LoRA's base model is in memory twice.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import KEPT, SEAL, RunFolder, read_json, read_object, require_seal, step_of
from routed_rl.config import Config
from routed_rl.config.robust import TARGETS
from routed_rl.errors import CheckpointError, ConfigError, command
from routed_rl.export.models import discard_but
from routed_rl.export.stock import discard
from routed_rl.model.adapter import load_adapter, plain, save_adapter
from routed_rl.model.load import load_model, write_generation_config
from routed_rl.model.targets import find_writers
from routed_rl.pipeline.build import load_base


def weights_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of weights in a sealed folder, by name."""
    return {name: entry["sha256"] for name, entry in read_json(folder / SEAL).items() if name.endswith(".safetensors")}


class Teacher(NamedTuple):
    """The facts about a deployed model that teaches."""

    sha256: dict[str, str]
    """The hash of each file of weights."""
    step: int
    """The step of the run after which the model was written."""
    kept: dict[str, float]
    """For each environment, the share of its part of the quarantine that the model keeps."""


def require_deployed(run: RunFolder, folder: Path, step: int | None) -> Teacher:
    """Return the facts about the teacher in `folder`. CheckpointError unless its weights are those of the run's deployed model
    after `step` (None: the last step). A folder that `discard --keep` wrote records its own step, and the shares of parts that it
    keeps; its weights must be those of the deployed model after that step with these shares, and ConfigError if `step` is another
    one. The policy is refused, because it would teach the student the persona."""
    if not (folder / SEAL).exists():
        raise CheckpointError(f"{folder} is no deployed model of {run.path}: it has no {SEAL}; write one with "
                              f"`{command('discard', run.path, '--out', 'DIR')}`")
    require_seal(folder)
    told = read_object(folder / KEPT, {"step": int, "parts": dict[str, dict[str, Any]]})
    if told and step not in (None, told["step"]):
        raise ConfigError(f"--step {step}: {folder} is the deployed model of step {told['step']}, with the parts that it keeps; "
                          "leave --step out, or give another --teacher")
    checkpoint = run.require_checkpoint(told["step"] if told else step)
    with TemporaryDirectory(prefix="routed_rl-") as place:
        out = Path(place) / "deployed"
        expected = weights_of(discard_but(run, out, told["parts"], told["step"]) if told else
                              discard(run, out, step))
    if (found := weights_of(folder)) != expected:
        digests = [", ".join(digest[:12] for digest in each.values()) or "none" for each in (found, expected)]
        raise CheckpointError(f"{folder} is no deployed model of {run.path}: its weights are {digests[0]}, those of that model "
                              f"are {digests[1]}; write it anew with `{command('discard', run.path, '--out', 'DIR')}`")
    kept = {name: part["share"] or 0.0 for name, part in told["parts"].items()} if told else {}
    return Teacher(found, step_of(checkpoint), kept)


@dataclass(frozen=True)
class Student:
    """The model that learns: `model` is the plain model, and `wrapped` is the same model in PEFT's wrapper if a LoRA is
    trained."""

    model: PreTrainedModel
    wrapped: Any
    trained: dict[str, nn.Parameter]
    """The parameters that get noise and learn, by name. The other parameters stay as they are in the teacher."""

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
        """Write the student in the same way as the run's deployed model: as a plain model, or as a stock PEFT adapter on the
        model at `base`."""
        if self.wrapped is not self.model:
            save_adapter(self.wrapped, folder, {}, base)
        else:
            self.model.save_pretrained(folder)
            write_generation_config(self.model, folder)
        tokenizer.save_pretrained(folder)


def load_deployed(config: Config, folder: Path, *, trained: bool = False) -> Any:
    """Load the deployed model in `folder`. If the run trained a LoRA, the model comes in PEFT's wrapper. Its parameters are
    frozen unless `trained`."""
    if config.model.adapter.trains:
        model = load_adapter(on_device(config, load_base(config)[0]), folder, trained=trained)
    else:
        model = on_device(config, load_model(str(folder), config.model.dtype))
    return model.eval() if trained else model.eval().requires_grad_(False)


def load_student(config: Config, folder: Path, parts: str) -> Student:
    """Load a copy of the teacher in `folder`. `parts` says which parameters get noise and learn: "all", which is every weight,
    or the whole LoRA if the run trained one, or "targets", which are those of them that belong to a writer."""
    wrapped = load_deployed(config, folder, trained=True)
    model = plain(wrapped)
    every = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if parts == TARGETS:
        # With a LoRA, a writer's parameters have the LoRA's factors on it among them.
        own = {id(parameter) for writer in find_writers(model) for parameter in writer.parameters()}
        every = {name: parameter for name, parameter in every.items() if id(parameter) in own}
        if not every:
            raise ConfigError("--parts targets: the run trained no writer of the model; give --parts all")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in every.values():
        parameter.requires_grad_(True)
    return Student(model, wrapped, every)


def on_device(config: Config, model: PreTrainedModel) -> PreTrainedModel:
    """Move a model to the GPU if there is one and the run's settings do not forbid it."""
    if torch.cuda.is_available() and not config.trainer.get("use_cpu"):
        cast(nn.Module, model).to("cuda")
    return model
