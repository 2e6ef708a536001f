"""Checks whether a LoRA can be trained and routed on a model. The LoRA is given by `model.adapter` or by a `peft.LoraConfig`.

Not covered: adapters of other kinds, on embeddings and on the experts of a mixture; patterns of ranks.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, cast

from peft import LoraConfig, PeftType
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL_TARGETS
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from routed_rl.config import AdapterConfig, closest
from routed_rl.errors import ConfigError, reading
from routed_rl.model.targets import Writer
from routed_rl.routing.adapted import shape_of

OPTIONS = ("init_lora_weights", "lora_dropout", "exclude_modules")
"""Fields of `LoraConfig` that users may set in `model.adapter.options`."""
OWN = {"r": "r", "lora_alpha": "alpha", "target_modules": "target_modules", "use_rslora": "rslora"}
"""Maps fields of `LoraConfig` to their names in `model.adapter`."""
DECIDED = ("fan_in_fan_out", "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
           "inference_mode")
"""The fields of `LoraConfig` whose value the model, or PEFT itself, decides."""
STARTS = (True, "gaussian")
"""Initialisations that do not change the base model and begin with the adapter's product at 0."""
REFUSED = {
    "its magnitudes rescale the frozen weights too, so what is retained would move inside the subspace": "use_dora",
    "it trains whole copies of modules, which are not routed": "modules_to_save trainable_token_indices",
    "a bias that is trained is a part of the writer that no LoRA's factor holds": "lora_bias bias",
    "experts of a mixture are frozen here": "target_parameters",
}
"""The fields of `LoraConfig` that are refused for a special reason. A key is the reason, and its value has the names of the
fields. A field that is neither here nor in `OWN`, `OPTIONS` or `DECIDED` must have its default."""
NUMBERS: dict[str, tuple[Any, Callable[[float], bool], str]] = {
    "r": (int, lambda value: value >= 1, "a whole number >= 1"),
    "lora_alpha": ((int, float), lambda value: 0 < value < math.inf, "> 0"),
    "lora_dropout": ((int, float), lambda value: 0 <= value < 1, "from 0 to below 1")}
"""For each numeric field of `LoraConfig`: its types, the condition on its value, and that condition in words."""
UNCALLED: dict[str, tuple[str, ...]] = dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"),
                                                    ("out_proj", "conv1d"))
"""For each model type, the names of the modules on which PEFT refuses to put a LoRA, because Mamba's fused kernels read their
weights without calling them (`peft.tuners.tuners_utils`, PEFT 0.21)."""
FIELDS = {field.name: field for field in dataclasses.fields(LoraConfig)}


def lora_config(model: PreTrainedModel, config: AdapterConfig, writers: list[Writer]) -> LoraConfig:
    """Return PEFT's settings for `model.adapter`, which is `config`. ConfigError if such a LoRA cannot be trained and routed on
    this model with these writers."""
    for key in config.options:
        name = f"model.adapter.options.{key}"
        if key not in FIELDS:
            near = closest(key, sorted(FIELDS))
            raise ConfigError(f"{name} is no field of peft.LoraConfig; " + (f"did you mean {near}?" if near else "leave it out"))
        if key in DECIDED or key in OWN:
            why = f"it is a setting of its own, model.adapter.{OWN[key]}" if key in OWN else "the model decides it"
            raise ConfigError(f"{name} is refused: {why}; leave it out")
        _check_supported(key, config.options[key], name)  # PEFT would complain of it in words of its own
    linear, names = _linear(model, writers), config.target_modules
    if names == "all-linear" and (_mixes(writers) or model.config.model_type in UNCALLED):
        names = sorted({name.rpartition(".")[2] for name in linear})
    if _language(model):  # PEFT would take the names for modules of the other parts too
        matched = [[full for full in linear if f".{full}".endswith(f".{each}")] or [each]
                   for each in (linear if names == "all-linear" else names)]
        names = list(dict.fromkeys(name for those in matched for name in those))
    with reading(ConfigError, f"model.adapter.options={config.options}"):
        lora = LoraConfig(task_type="CAUSAL_LM", r=config.r, use_rslora=config.rslora,
                          lora_alpha=cast(int, config.r if config.alpha is None else config.alpha),
                          target_modules=names if isinstance(names, str) else list(names),
                          fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()), **config.options)
    check_lora(lora, model, writers, lambda key: f"model.adapter.{OWN.get(key, f'options.{key}')}")
    return lora


def is_lora(settings: Any) -> bool:
    """Whether `settings` (of any type) are PEFT's settings of a LoRA. An `AdaLoraConfig` does not count, although its class is
    derived from `LoraConfig`."""
    return isinstance(settings, LoraConfig) and settings.peft_type == PeftType.LORA


def check_lora(lora: LoraConfig, model: PreTrainedModel, writers: list[Writer], named: Callable[[str], str]
               ) -> list[str]:
    """Return the names of the modules on which a LoRA with the settings `lora` would be put. ConfigError if it cannot be put on
    this model, trained, and routed.

    `writers`: the writers of the model; empty if they are not known. `named`: function that maps a field of `LoraConfig` to the
    name under which the user sets it.
    """
    _check_fields(lora, named)
    linear = _linear(model, writers)
    targets = _targets(lora, model, linear, named, mixes=_mixes(writers))
    width = min(min(shape_of(linear[name].weight)) for name in targets)
    if lora.r > width:
        raise ConfigError(f"{named('r')}={lora.r} is more than the smallest width of what it is put on, {width}, which is full "
                          f"rank; set {named('r')} to {width} or less")
    if lora.lora_dropout and (hit := [writer.name for writer in writers if writer.name in targets]):
        raise ConfigError(f"{named('lora_dropout')}={lora.lora_dropout} would drop out inputs of the writer {hit[0]}, which the "
                          f"ledger has whole; set it to 0, or leave the writers out of {named('target_modules')}")
    return targets


def _check_fields(lora: LoraConfig, named: Callable[[str], str]) -> None:
    """ConfigError for a field of `lora` whose value is not supported on any model. `named`: returns the words by which a message
    names a field, as in `check_lora`."""
    for key in FIELDS:
        _check_supported(key, getattr(lora, key), named(key))
    if lora.init_lora_weights not in STARTS:
        raise ConfigError(f"{named('init_lora_weights')}={lora.init_lora_weights} is refused: it changes the frozen weights, or "
                          "does not begin at the base model; set it to true or gaussian")
    if lora.task_type not in (None, "CAUSAL_LM"):
        raise ConfigError(f"{named('task_type')}={lora.task_type} is refused: the model is a causal language model; leave it out")
    if lora.inference_mode:
        raise ConfigError(f"{named('inference_mode')}=True is refused: nothing would be trained; leave it out")
    for key, (kinds, fits, wanted) in NUMBERS.items():
        value = getattr(lora, key)
        if isinstance(value, bool) or not isinstance(value, kinds) or not fits(value):
            raise ConfigError(f"{named(key)} must be {wanted}, got {value}")


def _check_supported(key: str, value: Any, name: str) -> None:
    """ConfigError if the field `key` of `LoraConfig`, which the user sets as `name`, is not supported and `value` is not its
    default."""
    field = FIELDS[key]
    usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    left_out = value == usual or (not value and not usual and value != 0)  # PEFT has None, False or [] for it
    if key in OWN or key in OPTIONS or key in DECIDED or left_out:
        return
    why = next((why for why, keys in REFUSED.items() if key in keys.split()), "it is not supported")
    raise ConfigError(f"{name} is refused: {why}; leave it out")


def _mixes(writers: list[Writer]) -> bool:
    return any(writer.expert is not None for writer in writers)


def _modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules of a model by name, without those of a LoRA that is on the model already."""
    return {name: module for name, module in model.named_modules() if not re.search(r"\.(base_layer|lora_\w+)(\.|$)", name)}


def _language(model: PreTrainedModel) -> str:
    """Return the beginning of the names of the modules of the language model in a model that has other parts too, such as one
    that reads images; empty for a model of text alone."""
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")


def _linear(model: PreTrainedModel, writers: list[Writer]) -> dict[str, Any]:
    """Return the linear modules that can have a LoRA, by name. Modules outside the language model are left out, because no text
    goes through them. The unembedding and the modules in `UNCALLED` are left out, because their weights are read without the
    modules being called. In a model with mixtures of experts all MLPs are left out, because PEFT would put a LoRA on the
    experts."""
    uncalled, language = UNCALLED.get(model.config.model_type, ()), _language(model)
    return {name: own for name, module in _modules(model).items()
            if name.startswith(language) and isinstance(own := getattr(module, "base_layer", module), (nn.Linear, Conv1D))
            and module is not model.get_output_embeddings() and name.rpartition(".")[2] not in uncalled
            and not (_mixes(writers) and ".mlp." in name)}


def _others(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear modules outside the language model, without the unembedding."""
    language = _language(model)
    linear = [name for name, module in _modules(model).items() if isinstance(getattr(module, "base_layer", module),
                                                                             (nn.Linear, Conv1D))
              and module is not model.get_output_embeddings()]
    return [name for name in linear if language and not name.startswith(language)]


def _refuse_others(setting: str, others: set[str], model: PreTrainedModel, known: str) -> NoReturn:
    pattern = rf"{re.escape(_language(model))}.*\.({known.replace(', ', '|')})"
    raise ConfigError(f"{setting} would put a LoRA on {min(others)}, outside the language model, through which no text goes, so "
                      f"it would learn nothing; set it to r'{pattern}'")


def _targets(lora: LoraConfig, model: PreTrainedModel, linear: dict[str, Any], named: Callable[[str], str], *, mixes: bool
             ) -> list[str]:
    """Return the names of the modules that get a LoRA. ConfigError for a name in `lora` that no module in `linear` has. `mixes`:
    whether the model has mixtures of experts. `named`: as in `check_lora`."""
    name, wanted = named("target_modules"), lora.target_modules
    known = ", ".join(sorted({each.rpartition(".")[2] for each in linear}))
    if wanted is None and (wanted := USUAL_TARGETS.get(model.config.model_type)) is None:
        raise ConfigError(f"{name} is not set, and PEFT has no default for models of type {model.config.model_type}; set it to a "
                          f"list of {known}")
    if not wanted:
        raise ConfigError(f"{name}={wanted!r} names no layer, so nothing would be trained; set it to a list of {known}")
    if mixes and isinstance(wanted, str):
        raise ConfigError(f"{name}={wanted} would put a LoRA on the experts of a mixture, which are frozen here; set it to a "
                          f"list of {known}")
    everything = isinstance(wanted, str) and wanted.lower() == "all-linear"
    if everything and (uncalled := UNCALLED.get(model.config.model_type)):
        raise ConfigError(f"{name}={wanted} would put a LoRA on {uncalled[0]}, which PEFT refuses for models of type "
                          f"{model.config.model_type}; set it to a list of {known}")
    others = _others(model)
    with reading(ConfigError, f"{named('exclude_modules')}={lora.exclude_modules}"):
        trained = set(_matched(others, set(others), lora.exclude_modules))
    chosen = dict.fromkeys(linear) if everything else dict[str, None]()
    if everything and trained:
        _refuse_others(f"{name}={wanted}", trained, model, known)
    for each in () if everything else [wanted] if isinstance(wanted, str) else wanted:
        with reading(ConfigError, f"{name}={each}"):
            hit = _matched(_modules(model), each if isinstance(wanted, str) else {each}, None)
        if trained & set(hit):
            _refuse_others(f"{name}={each}", trained & set(hit), model, known)
        hit = [found for found in hit if found not in others]
        if not hit or not set(hit) <= linear.keys():
            raise ConfigError(f"{name}={each} is no linear layer that a LoRA can be put on here; there is {known}")
        chosen |= dict.fromkeys(hit)
    with reading(ConfigError, f"{named('exclude_modules')}={lora.exclude_modules}"):
        left = _matched(chosen, set(chosen), lora.exclude_modules)
    if not left:
        raise ConfigError(f"{named('exclude_modules')}={lora.exclude_modules} leaves no layer for a LoRA; set it to fewer")
    return left


def _matched(names: Iterable[str], wanted: Any, excluded: Any) -> list[str]:
    """Return those of the modules `names` on which PEFT would put a LoRA, if `wanted` is `target_modules` and `excluded` is
    `exclude_modules`."""
    config = LoraConfig(target_modules=wanted, exclude_modules=excluded)
    return [name for name in names if check_target_module_exists(config, name)]
