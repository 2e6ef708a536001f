"""A LoRA as what is trained: a stock PEFT adapter on the frozen model, in float32 whatever the model's weights are.

PEFT puts its modules into the model itself, so the model stays what it is for everything that runs it; the trainer gets PEFT's
wrapper around it. Not covered: 4-bit weights, several adapters, adapters on embeddings and on the experts of a mixture.
"""

import copy
import dataclasses
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from routed_rl.artifacts import read_json, write_json
from routed_rl.config import AdapterConfig, closest
from routed_rl.errors import ConfigError, ModelError, reading
from routed_rl.model.targets import Writer
from routed_rl.routing.adapted import NAME, has_adapter

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files of a stock PEFT adapter."""
WRAPPED = "base_model.model."
"""Before a module's name in PEFT's wrapper, and in its files."""
OPTIONS = ("init_lora_weights", "lora_dropout", "exclude_modules")
"""Fields of `LoraConfig` that may be set as they are."""
STARTS = (True, "gaussian")
"""Initialisations that leave the base model what it is, and the adapter's product at 0."""
REFUSED = {
    "its magnitudes rescale the frozen weights too, so what is retained would move inside the subspace": "use_dora",
    "it trains whole copies of modules, which are not routed": "modules_to_save trainable_token_indices",
    "a bias that is trained is a part of the writer that no LoRA's factor holds": "lora_bias bias",
    "experts of a mixture are frozen here": "target_parameters",
    "it is a setting of its own: set model.adapter.NAME": "r lora_alpha target_modules use_rslora",
    "the model decides it": "fan_in_fan_out task_type inference_mode peft_type base_model_name_or_path revision",
}
"""Why -> fields of `LoraConfig` that are refused; of any other one it is only said that it is not supported."""


def attach(model: PreTrainedModel, config: AdapterConfig, writers: list[Writer], seed: int) -> PeftModel:
    """Put a LoRA on the model in place, the same for the same seed; returns PEFT's wrapper. The model's own weights are frozen,
    and it computes what it did before: one factor of each product is 0.

    ConfigError for what cannot be trained and routed. The state of random numbers does not change.
    """
    lora = lora_config(model, config, writers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, lora)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def lora_config(model: PreTrainedModel, config: AdapterConfig, writers: list[Writer]) -> LoraConfig:
    """PEFT's settings for ours, checked against the model."""
    linear, mixes = _linear(model), any(writer.expert is not None for writer in writers)
    targets, options = _targets(config, list(linear), mixes=mixes), _options(config)
    width = min(min(linear[name].weight.shape) for name in targets)
    if config.r > width:
        raise ConfigError(f"model.adapter.r={config.r} is more than the smallest width of what it is put on, {width}, which is "
                          f"full rank; set model.adapter.r to {width} or less")
    names: Any = config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules)
    if mixes and isinstance(names, str):
        names = sorted({name.rpartition(".")[2] for name in targets})
    lora = LoraConfig(task_type="CAUSAL_LM", r=config.r, lora_alpha=cast(int, config.r if config.alpha is None else config.alpha),
                      use_rslora=config.rslora, target_modules=names, bias="none",
                      fan_in_fan_out=any(isinstance(linear[name], Conv1D) for name in targets), **options)
    if lora.lora_dropout and (hit := [writer.name for writer in writers if writer.name in targets]):
        raise ConfigError(f"model.adapter.options.lora_dropout={lora.lora_dropout} would drop out inputs of the writer {hit[0]}, "
                          "which the ledger has whole; set it to 0, or leave the writers out of model.adapter.target_modules")
    return lora


def _linear(model: PreTrainedModel) -> dict[str, Any]:
    """The linear layers of a model by name, but for the unembedding, whose weight is read without its module."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not model.get_output_embeddings()}


def _targets(config: AdapterConfig, linear: list[str], *, mixes: bool) -> list[str]:
    """The modules that get a LoRA; ConfigError for a name that no linear layer has. Where experts are mixed, what stands in place
    of a mixture gets none: PEFT would put it on the experts."""
    usable = [name for name in linear if not (mixes and ".mlp." in name)]
    if config.target_modules == "all-linear":
        return usable
    found: list[str] = []
    for wanted in config.target_modules:
        mine = [name for name in usable if name == wanted or name.endswith(f".{wanted}")]
        if not mine:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in usable}))
            raise ConfigError(f"model.adapter.target_modules={wanted} is no linear layer that a LoRA can be put on here; "
                              f"there is {known}")
        found += mine
    return list(dict.fromkeys(found))


def _options(config: AdapterConfig) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    for key, value in config.options.items():
        name = f"model.adapter.options.{key}"
        if key not in fields:
            near = closest(key, sorted(fields))
            raise ConfigError(f"{name} is no field of peft.LoraConfig; " + (f"did you mean {near}?" if near else "leave it out"))
        why = next((why for why, keys in REFUSED.items() if key in keys.split()), "" if key in OPTIONS else "it is not supported")
        if why:
            raise ConfigError(f"{name} is refused: {why}; leave it out")
        if key == "init_lora_weights" and value not in STARTS:
            raise ConfigError(f"{name}={value} is refused: it changes the frozen weights, or does not begin at the base model; "
                              "set it to true or gaussian")
    return dict(config.options)


def stored_names(model: nn.Module) -> dict[str, str]:
    """What is trained of a model with a LoRA: the parameters' own names, and those that PEFT's files have. Empty without one."""
    return {name: WRAPPED + name.removeprefix(WRAPPED).replace(f".{NAME}.", ".")
            for name, _ in model.named_parameters() if ".lora_" in name and f".{NAME}." in name}


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained of a model with a LoRA, by the names that PEFT's files have."""
    parameters = dict(model.named_parameters())
    return {stored: parameters[own] for own, stored in stored_names(model).items()}


def save_adapter(model: Any, folder: Path, deployed: dict[str, Tensor], base: str) -> None:
    """Write the LoRA of a model as a stock PEFT adapter on the model at `base`; `deployed`: by module's name, what its up factor
    is there."""
    ups = {f"{WRAPPED}{name}.lora_B.weight": up for name, up in deployed.items()}
    tensors = {name: ups.get(name, parameter).detach().cpu().contiguous().clone() for name, parameter in factors(model).items()}
    write_adapter(folder, model.peft_config[NAME], base, tensors)


def write_adapter(folder: Path, config: LoraConfig, base: str, tensors: dict[str, Tensor]) -> None:
    """Write the two files of a stock PEFT adapter on the model at `base`; the same adapter is the same bytes."""
    config = copy.copy(config)
    config.inference_mode, config.base_model_name_or_path = True, base
    config.save_pretrained(str(folder))
    # PEFT keeps some of its lists as sets.
    written = read_json(folder / CONFIG)
    names = {key: sorted(value) for key in ("target_modules", "target_parameters", "exclude_modules")
             if isinstance(value := written.get(key), list)}
    write_json(folder / CONFIG, {**written, **names})
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge the adapter in a folder into a model, in place, computed in float32; ModelError where it is none of this model."""
    with reading(ModelError, f"{folder} is no LoRA on {model.name_or_path}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is refused here
        settings = PeftConfig.from_pretrained(str(folder))
        if settings.peft_type != "LORA":
            raise ValueError(f"it is of the kind {settings.peft_type}")
        wrapped = PeftModel.from_pretrained(model, str(folder))
        known, stored = {name.replace(f".{NAME}.", ".") for name in wrapped.state_dict()}, load_file(folder / ADAPTER)
        if not stored.keys() <= known:
            raise ValueError(f"it has {min(stored.keys() - known)}")
        merged = cast(Any, wrapped).merge_and_unload()
    return merged


def is_adapted(model: nn.Module) -> bool:
    return any(has_adapter(module) for module in model.modules())
