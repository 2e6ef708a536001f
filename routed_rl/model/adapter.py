"""Puts the LoRA that is trained on a model. It is a stock PEFT adapter on the frozen model, and is in float32 whatever the type
of the model's weights.

PEFT puts its modules into the model itself, so code that runs the model need not know about them; the trainer gets PEFT's wrapper
around the model. Not covered: several adapters, adapters on embeddings and on the experts of a mixture.
"""

import copy
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from routed_rl.artifacts import ADAPTER, ADAPTER_CONFIG, read_json, write_json
from routed_rl.config import AdapterConfig
from routed_rl.errors import ModelError, reading
from routed_rl.model.base import WRAPPED, adapted_modules, stored_names
from routed_rl.model.lora import lora_config
from routed_rl.model.targets import Writer
from routed_rl.ranks import RANKS
from routed_rl.routing.adapted import NAME, has_adapter
from routed_rl.routing.shards import whole

COPY = f".modules_to_save.{NAME}."
"""Part of the name of a tensor that an adapter has a trained copy of, in place of a LoRA on it (`modules_to_save`)."""


def attach(model: PreTrainedModel, config: AdapterConfig, writers: list[Writer], seed: int) -> PeftModel:
    """Put a LoRA with the settings `config` on the model in place, and return PEFT's wrapper around the model. The model's own
    weights are frozen. The model's outputs do not change, because the factor B of each product `BA` begins at 0. `writers`: the
    model's writers. `seed`: the seed by which the factors A are drawn.

    ConfigError for a LoRA that cannot be trained and routed. The global state of random numbers does not change.
    """
    lora = lora_config(model, config, writers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return put_on(model, lora)


def put_on(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Put a LoRA with the settings `lora` on the model in place, as TRL does, and return PEFT's wrapper around the model. The
    LoRA's first values are drawn from the global random state. `lora` is not changed."""
    wrapped = get_peft_model(model, copy.deepcopy(lora))
    assert isinstance(wrapped, PeftModel)
    cast(Any, model).is_loaded_in_4bit = False  # else TRL would round the LoRA to bfloat16
    return wrapped


def take_off(model: Any) -> None:
    """Take the LoRA off a model on which `put_on` has put it, in place. What the LoRA has learned is lost."""
    for name, module in adapted_modules(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config


def plain(model: Any) -> Any:
    """Return the model inside PEFT's wrapper, or the model itself if it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters of a model with a LoRA, by their names in PEFT's files."""
    parameters = dict(model.named_parameters())
    return {stored: parameters[own] for own, stored in stored_names(model).items()}


def save_adapter(model: Any, folder: Path, deployed: dict[str, Tensor], base: str) -> None:
    """Write the LoRA of a model into `folder` as a stock PEFT adapter for the model at the path `base`. `deployed`: factors B
    that are written instead of the trained ones, by the names of their modules. Every process must call this; the first one
    writes."""
    ups = {f"{WRAPPED}{name}.lora_B.weight": up for name, up in deployed.items()}
    tensors = {name: (ups[name] if name in ups else whole(parameter)).cpu().contiguous().clone()
               for name, parameter in factors(model).items()}
    if RANKS.rank == 0:
        write_adapter(folder, model.peft_config[NAME], base, tensors)


def write_adapter(folder: Path, config: LoraConfig, base: str, tensors: dict[str, Tensor]) -> None:
    """Write the two files of a stock PEFT adapter for the model at the path `base`, from its settings and its `tensors` by their
    names in PEFT's files. The same adapter always gives the same bytes."""
    config = copy.copy(config)
    config.inference_mode, config.base_model_name_or_path = True, base
    config.save_pretrained(str(folder))
    # PEFT keeps some of its lists as sets.
    written = read_json(folder / ADAPTER_CONFIG)
    names = {key: sorted(value) for key in ("target_modules", "target_parameters", "exclude_modules")
             if isinstance(value := written.get(key), list)}
    write_json(folder / ADAPTER_CONFIG, {**written, **names})
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})


def _no_lora(folder: Path, model: PreTrainedModel) -> str:
    return f"{folder} is no LoRA on {model.name_or_path}; give the folder of a PEFT LoRA that was trained on this model"


def load_adapter(model: PreTrainedModel, folder: Path, *, trained: bool = False) -> PeftModel:
    """Put the LoRA that is stored in a folder on a model in place, and return PEFT's wrapper around the model. The model's own
    weights are frozen, and so is the LoRA unless `trained`. ModelError if the LoRA does not fit the model."""
    with reading(ModelError, _no_lora(folder, model)):
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trained)


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add the product of the LoRA that is stored in a folder to the weights of a model in place, and return the model. The sum is
    computed in float32. Whole modules that the adapter holds (`modules_to_save`) replace the model's. ModelError if the LoRA does
    not fit the model, or if a module that it changes shares its weight with another."""
    with reading(ModelError, _no_lora(folder, model)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of faults that are refused below
        settings = PeftConfig.from_pretrained(str(folder))
        if settings.peft_type != "LORA":
            raise ValueError(f"it is of the kind {settings.peft_type}")
        wrapped = PeftModel.from_pretrained(model, str(folder))
        names, stored = {name: _in_file(name) for name in wrapped.state_dict()}, load_file(folder / ADAPTER)
        read = {names[name]: value for name, value in wrapped.state_dict().items()}
        if not stored.keys() <= read.keys():
            raise ValueError(f"it has {min(stored.keys() - read.keys())}")
        own = {short for name, short in names.items() if ".lora_" in name or COPY in name}
        if missing := own - stored.keys():
            raise ValueError(f"it lacks {min(missing)}")
        if lost := [name for name, value in stored.items() if not read[name].cpu().equal(value.to(read[name].dtype))]:
            raise ValueError(f"PEFT reads other values than it has in {min(lost)}")
        _check_unshared(model)
        merged = cast(Any, wrapped).merge_and_unload()
    return merged


def _in_file(name: str) -> str:
    """Return the name that a tensor of PEFT's wrapper has in PEFT's files. `name`: its name in the wrapper's state."""
    short = name.replace(COPY, ".").replace(f".{NAME}.", ".").removesuffix(f".{NAME}")
    return short.removesuffix(".weight") if short.endswith(".lora_magnitude_vector.weight") else short


def _check_unshared(model: nn.Module) -> None:
    """ModelError if a module of a model with LoRAs shares its weight with another module, and has a LoRA or a trained copy of its
    own. The other module would get the LoRA's product, too: in Zamba another layer, which has a LoRA itself, and in a model whose
    head is tied the embedding."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if (weight := vars(module)["_parameters"].get("weight")) is not None:
            owners.setdefault(id(weight), []).append(name)
    for names in owners.values():
        changed = [name for name in names if name.endswith((".base_layer", ".original_module"))]
        if len(names) == 1 or not changed:
            continue
        one, other = (name.removesuffix(".base_layer").removesuffix(".original_module")
                      for name in (changed[0], next(name for name in names if name != changed[0])))
        if len(changed) > 1:
            raise ModelError(f"{one} and {other} share one weight and have LoRAs of their own, so these cannot be merged into "
                             "it; use the adapter as it is")
        raise ModelError(f"the adapter changes {one}, which shares its weight with {other}, and merging would change both; load "
                         "the base model with tie_word_embeddings=False, merge the adapter into it there (merge_and_unload, "
                         "save_pretrained) and give that folder as the model")


def is_adapted(model: nn.Module) -> bool:
    return any(has_adapter(module) for module in model.modules())
