"""The function `routed_rl.extract_subspace`, by which a script makes a subspace."""

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.config import SubspaceConfig, closest
from routed_rl.errors import ConfigError, ModelError
from routed_rl.extraction.contrast import pairs_of
from routed_rl.extraction.find import prepare
from routed_rl.extraction.job import OWN, Job
from routed_rl.model.weights import check_default_dtype, model_hash
from routed_rl.shapes import fits
from routed_rl.subspace import Subspace

OF_BASES = ("layout", "drop_below", "shared_rank")
"""The settings of a subspace that routing reads and an extraction does not."""


def extract_subspace(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
                     prompts: str | Path | Sequence[Any] | None = None, *, seed: int = 0, axes: bool = False,
                     **settings: Any) -> Subspace:
    """Extract the subspace of a model, as `routed-rl extract` does. The model is not changed.

    `prompts`: contrast pairs, as a file of JSON lines or a list of pairs (positive, negative). Each prompt is text or chat
    messages, and the positive one shows the persona that must not grow. `seed`: the seed of all random draws. `axes`: whether
    it is measured for each axis by itself, on prompts that are held out, at which layers the axis tells the personas apart. Set
    it if `MonitorConfig.axis` names another axis than the first.
    `settings`: other fields of `SubspaceConfig`, such as method, rank or weakest.
    """
    _check_parts(model, tokenizer)
    _check_unchanged(model)
    known = [field.name for field in dataclasses.fields(SubspaceConfig)]
    hints = typing.get_type_hints(SubspaceConfig)
    for name, value in settings.items():
        if name in OF_BASES:
            raise ConfigError(f"{name} is read where the model is routed; give the trainer bases=SubspaceConfig({name}=...)")
        if name not in known:
            near = closest(name, known)
            raise ConfigError(f"extract_subspace has no setting {name}" + (f"; did you mean {near}?" if near else
                              "; the settings are the fields of SubspaceConfig"))
        if not fits(value, hints[name]):
            raise ConfigError(f"extract_subspace: {name} must be {hints[name]}, got {value!r:.60}")
    from_file = isinstance(prompts, (str, Path))
    config = SubspaceConfig(prompts=str(prompts) if from_file else None, **settings)
    name = model.config.name_or_path or type(model).__name__
    if prompts is not None and config.method in OWN:
        raise ConfigError(f"extract_subspace: method={config.method} makes its own prompts from lists of personas and questions; "
                          "leave prompts out, or choose another method")
    pairs = None if prompts is None or from_file else pairs_of(prompts)
    return prepare(Job(model, tokenizer, config, name, model_hash(model), seed, axes=axes, pairs=pairs))()


def _check_parts(model: Any, tokenizer: Any) -> None:
    """ConfigError unless `model` is a loaded model with its head and `tokenizer` a tokenizer. A model in PEFT's wrapper passes
    this check; it is refused later, when its family is looked up."""
    check_default_dtype()
    if not isinstance(model, PreTrainedModel) and not hasattr(model, "get_base_model"):
        raise ConfigError(f"extract_subspace: model={model!r:.60} is a {type(model).__name__}; give a loaded model, such as "
                          "AutoModelForCausalLM.from_pretrained(PATH)")
    if isinstance(model, PreTrainedModel) and model.base_model is model and not model.can_generate():
        raise ConfigError(f"extract_subspace: model is a {type(model).__name__}, which has no output layer; give a causal "
                          "language model, such as AutoModelForCausalLM.from_pretrained(PATH)")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(f"extract_subspace: tokenizer={tokenizer!r:.60} is a {type(tokenizer).__name__}; give the model's "
                          "tokenizer, such as AutoTokenizer.from_pretrained(PATH); that of a processor is processor.tokenizer")


def _check_unchanged(model: PreTrainedModel) -> None:
    """ModelError if a trained LoRA or a quarantine on the model changes its outputs. A subspace records the hash of the model's
    own weights alone, so it would later be accepted for the model without that LoRA or quarantine."""
    module: Any
    for module in model.modules():
        if hasattr(module, "base_layer") and not getattr(module, "disable_adapters", False):
            ups = getattr(module, "lora_B", None)
            if ups is not None and any(up.weight.any() for up in ups.values()):
                raise ModelError("extract_subspace: the model has a LoRA that is trained already, and the subspace would not be "
                                 "that of its weights; load the model again, or merge the LoRA first (merge_and_unload)")
        found = vars(module).get("routed_target")
        for target in found if isinstance(found, list) else [found] if hasattr(found, "coefficients") else []:
            if target.coefficients.any() and not target.context.now.ablated:
                raise ModelError("extract_subspace: the model has a quarantine that has learned already, and the subspace would "
                                 "not be that of its weights; load the model again, or extract it inside "
                                 "`with trainer.quarantine.ablated():`")
