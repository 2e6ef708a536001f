"""Takes the model that a script gives to a library trainer (one that `import routed_rl` offers): checks the model and its LoRA,
and routes the model in place."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed
from trl.trainer.utils import create_model_from_path

from routed_rl.artifacts import ADAPTER_CONFIG
from routed_rl.config import RoutingConfig, SubspaceConfig
from routed_rl.errors import ConfigError, ModelError, reading
from routed_rl.model.adapter import factors, plain, put_on, take_off
from routed_rl.model.lora import check_lora, is_lora
from routed_rl.model.targets import Writer, disable_dropout, find_writers, freeze
from routed_rl.model.weights import require_full_weights, require_weights
from routed_rl.routing import Router, unroute
from routed_rl.subspace import Subspace
from routed_rl.training.library.checks import check_not_compiled, check_one_device, check_subspace, check_unrouted
from routed_rl.training.route import bases_of, check_axis, check_routable, route_model


@dataclass(frozen=True)
class GivenModel:
    """The model and the LoRA that a script gave as `model` and `peft_config`."""

    whole: Any
    """The model as it was given: in PEFT's wrapper if it came with a LoRA."""
    name: str
    lora: Any
    """The settings of the LoRA that is trained, a `peft.LoraConfig`; None if the weights are trained."""
    revision: str | None = None
    """The revision of the model that was asked for on the Hub; None if none was named, or if the script gave a loaded model."""

    @classmethod
    def load(cls, model: Any, peft_config: Any, arguments: Any) -> "GivenModel":
        """Take the arguments `model` (a model, or the path of one, which is then loaded), `peft_config` and `args` of a library
        trainer. ModelError if the model is routed already or compiled, or has a LoRA that cannot be trained."""
        set_seed(arguments.seed)  # as TRL does first of all, because a LoRA begins with random numbers
        revision = None
        if isinstance(model, str):
            if (Path(model).expanduser() / ADAPTER_CONFIG).is_file():
                raise ModelError(f"{model!r} is a PEFT adapter and no whole model; merge it into its base model "
                                 "(PeftModel.from_pretrained(base, DIR).merge_and_unload()) and give that one")
            revision = (arguments.model_init_kwargs or {}).get("revision")
            place = {"device_map": None} if arguments.n_gpu > 1 else {}  # else TRL would divide the model among all GPUs
            wanted = place | {"trust_remote_code": arguments.trust_remote_code} | (arguments.model_init_kwargs or {})
            with reading(ModelError, f"no model could be loaded from {model!r}"):
                model = create_model_from_path(model, **wanted)
        name = name_of(model)
        if not isinstance(plain(model), PreTrainedModel):
            raise ModelError(f"model is a {type(model).__name__}; give a model of transformers, such as "
                             "AutoModelForCausalLM.from_pretrained(PATH), or its path")
        if not plain(model).can_generate():
            raise ModelError(f"model is a {type(plain(model)).__name__}, which cannot generate text; give a causal language "
                             "model, such as AutoModelForCausalLM.from_pretrained(PATH), or its path")
        check_unrouted(plain(model), name)  # in mode none too, where the other trainer's quarantine would stay in the policy
        check_not_compiled(model, name)
        if not hasattr(model, "get_base_model"):
            if hasattr(model, "peft_config"):
                raise ModelError(f"{name} has an adapter in it already; load the model again, or merge the adapter into it "
                                 "(merge_and_unload)")
            return cls(model, name, peft_config, revision)
        _check_new(model, name, peft_config)
        return cls(model, name, model.peft_config["default"], revision)

    @property
    def plain(self) -> PreTrainedModel:
        """The model without PEFT's wrapper."""
        return plain(self.whole)

    @property
    def wrapped(self) -> bool:
        """Whether the model came with its LoRA, in PEFT's wrapper."""
        return self.plain is not self.whole

    def check(self, writers: list[Writer]) -> None:
        """ConfigError if the LoRA is of a kind that is not supported for a model with these writers. ModelError if parameters of
        the model itself are trained beside a LoRA with which it came: checkpoints and the deployed model hold the LoRA alone."""
        prefix = "model.peft_config['default']" if self.wrapped else "peft_config"
        check_lora(self.lora, self.plain, writers, lambda field: f"{prefix}.{field}")
        beside = [name for name, parameter in self.plain.named_parameters() if parameter.requires_grad and ".lora_" not in name]
        if self.wrapped and beside:
            more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
            raise ModelError(f"{self.name} comes with a LoRA, and {beside[0]}{more} of the model itself would be trained beside "
                             "it, which no adapter holds and nothing routes; freeze what has no LoRA (requires_grad_(False)), or "
                             "train the weights without a LoRA")

    def learner(self) -> Any:
        """Return the module that TRL trains: the model, with the LoRA if there is one. A LoRA that the model does not have yet is
        put on it, as TRL would do."""
        return self.whole if self.lora is None or self.wrapped else put_on(self.plain, self.lora)

    def check_optimizers(self, optimizers: Any) -> None:
        """ConfigError if the argument `optimizers` has an optimizer that holds none of the parameters that are trained."""
        if optimizers is None or (optimizer := optimizers[0]) is None:
            return
        trained = [] if self.lora is not None and not self.wrapped else self.whole.parameters()
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not held & {id(parameter) for parameter in trained}:
            raise ConfigError(f"optimizers has a {type(optimizer).__name__} that holds no parameter of what is trained; give the "
                              "model itself, with its LoRA on it (get_peft_model), and an optimizer of model.parameters()")

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """If the block raises an error, restores the model as the script gave it: not routed, without a LoRA that was put on it,
        and with the same parameters frozen and the same dropout."""
        model, trains = self.plain, [(parameter, parameter.requires_grad) for parameter in self.plain.parameters()]
        dropouts = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
        try:
            yield
        except BaseException:
            unroute(model)
            if self.lora is not None and not self.wrapped:
                take_off(model)
            for parameter, trained in trains:
                parameter.requires_grad_(trained)
            for module, rate in dropouts:
                module.p = rate
            raise


def route_given(given: GivenModel, arguments: Any, routing: RoutingConfig, subspace: Subspace | None, names: list[str], *,
                axis: str | None, bases: SubspaceConfig, frozen: list[str]) -> tuple[Any, Router | None]:
    """Check the given model, put its LoRA on it and route it in place. Returns the module that TRL trains, and the router, which
    is None in mode `none`. `arguments`: TRL's arguments. `names`: the environments. `axis`: the value of `monitor.axis`; None:
    the first axis of the subspace. `bases`: the settings of the writers' bases. `frozen`: the groups of parameters that are not
    trained, as in `model.freeze`."""
    model, adapted = given.plain, given.lora is not None
    if routing.mode == "none":
        if adapted:
            given.check(_known_writers(model))
        freeze(model, frozen)
        return _trained(given.learner(), given.name), None
    assert subspace is not None, "check_trainer_of refuses it"
    if adapted:
        require_weights(model, given.name, (torch.float32, torch.bfloat16))
    else:
        require_full_weights(model, given.name)
    if arguments.disable_dropout:  # TRL does so as well, after the checks that refuse a model here
        disable_dropout(model)
    writers = find_writers(model)
    if adapted:
        given.check(writers)
    check_subspace(model, given.name, subspace)
    check_axis(axis, subspace.axis_names)
    check_routable(writers, [*frozen, *(["post_norm"] if adapted else [])], arguments.router_aux_loss_coef)
    learner = given.learner()
    check_one_device(model, given.name, writers := find_writers(model))
    cast(nn.Module, learner).to(arguments.device)
    router = route_model(model, writers, subspace, routing, names, bases=bases_of(subspace, bases), frozen=frozen,
                         axis=axis, seed=arguments.seed)
    return _trained(learner, given.name), router


def _trained(learner: Any, name: str) -> Any:
    """Return `learner`. ModelError if all its parameters are frozen."""
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise ModelError(f"all parameters of {name} are frozen, so nothing would be trained; call model.requires_grad_(True), or "
                         "give a peft_config")
    return learner


def name_of(model: Any) -> str:
    """Return the name of a model, for messages: its path if it has one, or else the name of its class."""
    return model if isinstance(model, str) else path_of(model) or type(model).__name__


def path_of(model: Any) -> str:
    """Return the path from which a model was loaded; empty if it has none."""
    return getattr(getattr(model, "config", None), "name_or_path", None) or ""


def _check_new(model: Any, name: str, peft_config: Any) -> None:
    """ModelError unless a model in PEFT's wrapper has exactly one adapter, and this is a LoRA that is called `default`, is not
    frozen, is in float32 and still adds 0. ModelError too if `peft_config` is given as well."""
    loras, merge = list(model.peft_config), "merge it first (model = model.merge_and_unload()) and give peft_config"
    if peft_config is not None:
        raise ModelError(f"{name} comes with the adapter {loras[0]} and there is a peft_config as well; leave one of them out")
    if loras != ["default"]:
        raise ModelError(f"{name} comes with the adapters {', '.join(loras)}, and one that is called default is trained; {merge}")
    if not is_lora(settings := model.peft_config["default"]):
        raise ModelError(f"{name} comes with an adapter of the kind {settings.peft_type.value}, and only LoRAs are trained; "
                         f"{merge}")
    found = factors(model)
    if any(".lora_B." in key and value.any() for key, value in found.items()):
        raise ModelError(f"{name} comes with a LoRA that is trained already, and the part of it inside the subspace could not be "
                         f"told apart from what is learned now; {merge}")
    wrong = next((value for value in found.values() if not value.requires_grad or value.dtype != torch.float32), None)
    if wrong is not None:
        what = "is frozen" if not wrong.requires_grad else f"is in {str(wrong.dtype).removeprefix('torch.')}, not in float32"
        raise ModelError(f"{name} comes with a LoRA that {what}; give the plain model and peft_config, which makes one")


def _known_writers(model: PreTrainedModel) -> list[Writer]:
    """Return the writers of a model; an empty list if they cannot be found, because TRL can train such a model without
    routing."""
    try:
        return find_writers(model)
    except ModelError:
        return []
