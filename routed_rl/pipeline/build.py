"""Builds the objects of a run from its config: model, tokenizer, environments, subspace, router."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from routed_rl import console
from routed_rl.artifacts import RunFolder, resolve, sealed_folder
from routed_rl.checkpoint import load_quarantine, read_weights
from routed_rl.config import LABELS, UNNAMED, Config
from routed_rl.envs import LoadedEnvironment, load_environments, trained
from routed_rl.errors import ModelError, SubspaceError
from routed_rl.extraction import Job, axis_names, prepare
from routed_rl.model.adapter import attach, merge
from routed_rl.model.families import FAMILIES
from routed_rl.model.load import empty_model, load_model, load_tokenizer, write_generation_config
from routed_rl.model.targets import Writer, decoder_layers, disable_dropout, find_writers, freeze, name_writers
from routed_rl.model.weights import model_hash
from routed_rl.pipeline.screening import flagged
from routed_rl.report.card import base_told
from routed_rl.routing import Router
from routed_rl.subspace import Subspace
from routed_rl.training.baselines import in_contexts
from routed_rl.training.labels import route_by_labels
from routed_rl.training.route import bases_of, check_axis, check_routable, route_model


@dataclass(frozen=True)
class Parts:
    """The objects that every verb needs if it loads a model: config, model, tokenizer and environments."""

    config: Config
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    environments: list[LoadedEnvironment]
    hash: str
    """The hash of the base model's weights."""
    adapted: nn.Module | None = None
    """PEFT's wrapper around the model, if a LoRA on it is trained instead of its weights."""

    @cached_property
    def writers(self) -> list[Writer]:
        """The model's writers, which are found once and then kept. ModelError for a model whose writers are unknown or cannot be
        routed."""
        return find_writers(self.model)

    @property
    def learner(self) -> Any:
        """The module that the trainer gets: PEFT's wrapper if there is one, otherwise the model."""
        return self.model if self.adapted is None else self.adapted

    @cached_property
    def evaluated(self) -> list[LoadedEnvironment]:
        """The environments on which the models of a run are evaluated at its end."""
        return self.with_contexts(self.environments)

    def with_contexts(self, chosen: list[LoadedEnvironment]) -> list[LoadedEnvironment]:
        """The given environments, followed by a copy of each under every context of evaluation.contexts."""
        wanted = self.config.evaluation.contexts
        return [*chosen, *in_contexts(self.config.baseline, chosen, wanted, self.config.seed)] if wanted else chosen

    @property
    def trained(self) -> list[LoadedEnvironment]:
        return trained(self.environments)

    @property
    def max_new_tokens(self) -> int:
        """The largest number of tokens of a completion in an evaluation: `trainer.max_completion_length` as in rollouts, or TRL's
        default, 256."""
        return self.config.trainer.get("max_completion_length", 256)


def load_parts(config: Config, *, attached: bool = True) -> Parts:
    """Load the base model and the environments. The environments are loaded first, so that a mistake in them is reported before
    anything slow begins. `attached`: whether the LoRA that the config wants trained is put on the model."""
    environments, adapter = load_environments(config.mixture), config.model.adapter
    model, tokenizer = load_base(config)
    if torch.cuda.is_available() and not config.trainer.get("use_cpu"):
        cast(nn.Module, model).to("cuda")
    if config.trainer.get("disable_dropout"):
        disable_dropout(model)
    if config.model.writers:
        name_writers(model, config.model.writers)
    digest = model_hash(model)
    adapted = _attached(config, model) if adapter.trains and attached else None
    return Parts(config, model, tokenizer, environments, digest, adapted)


def describe_parts(config: Config) -> Parts:
    """Load the parts of a run that its plan describes, from a model folder that has a config and a tokenizer but no weights. The
    model in the result cannot be run."""
    environments, path = load_environments(config.mixture), resolve(config.model.path)
    model, tokenizer = empty_model(path, config.model.dtype), load_tokenizer(path, config.model.date)
    if model.config.model_type not in FAMILIES:
        raise ModelError(f"{config.model.path} has no weights, and the writers of a {model.config.model_type} is "
                         "found by running it; give a folder with the weights")
    return Parts(config, model, tokenizer, environments, "", _attached(config, model) if config.model.adapter.trains else None)


def load_base(config: Config) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The base model, as it is before the run, and its tokenizer. ModelError if the run begins from a LoRA that was made for
    another model."""
    path, adapter = resolve(config.model.path), config.model.adapter
    model = load_model(path, config.model.dtype, frozen=adapter.trains, packed=adapter.four_bit)
    if adapter.trains and adapter.path is not None:
        _require_base_of(folder := Path(resolve(adapter.path)), model, config)
        model = merge(model, folder)
    return model, load_tokenizer(path, config.model.date)


def _require_base_of(folder: Path, model: PreTrainedModel, config: Config) -> None:
    """ModelError if the LoRA in `folder` was made for another base model than `model`, the one of `config`. This is known from
    the card in the folder, if a run with weights of the same type has written it."""
    told = base_told(folder)
    if told is not None and told.dtype == config.model.dtype and (found := model_hash(model)) != told.digest:
        raise ModelError(f"the LoRA in {folder} was not made for {config.model.path}: its weights are {found[:12]}, those of the "
                         f"LoRA's base model are {told.digest[:12]}; give that model as model.path")


def keep_base(config: Config, run: RunFolder) -> None:
    """If the run begins by merging an adapter into the base model, write the merged model to RUN/base. The adapters that the run
    writes belong on that model."""
    if config.model.adapter.trains and config.model.adapter.path is not None and not run.base.exists():
        model, tokenizer = load_base(config)
        with sealed_folder(run.base) as folder:
            model.save_pretrained(folder)
            write_generation_config(model, folder)
            tokenizer.save_pretrained(folder)


def _attached(config: Config, model: PreTrainedModel) -> nn.Module:
    """Put the LoRA of `config` onto the model, and return PEFT's wrapper around it. ModelError if changes are to be routed at a
    subspace and the model's writers are unknown."""
    try:
        writers = find_writers(model)
    except ModelError:
        if config.routing.by_subspace:
            raise
        writers = []
    return attach(model, config.model.adapter, writers, config.seed)


def take_checkpoint(parts: Parts, router: Router | None, folder: Path) -> None:
    """Load a checkpoint in place: its weights, or its LoRA, into the model, and its quarantine into the router."""
    parameters = dict(parts.model.named_parameters())
    with torch.no_grad():
        for name, tensor in read_weights(parts.model, folder).items():
            parameters[name].copy_(tensor)
    if router is not None:
        load_quarantine(folder, router)


def run_subspace(parts: Parts, run: RunFolder) -> Subspace | None:
    """Read the run's subspace if it has one, or else extract it. None if the run uses no subspace."""
    if not parts.config.takes_subspace:
        return None
    if run.subspace.exists():
        subspace = Subspace.load(run.subspace)
        check_subspace(parts, subspace)
    else:
        subspace = make_subspace(parts)
        subspace.save(run.subspace)
    check_axis(parts.config.monitor.axis, subspace.axis_names)
    return subspace


def make_subspace(parts: Parts, *, axes: bool = False) -> Subspace:
    """Extract the subspace of a run, or read it (method=file), and check that it fits the model. `axes`: whether the quality of
    each single axis is measured too (see `measure_axes`) and recorded in the subspace. It always is if `monitor.axis` is set."""
    axes = axes or parts.config.monitor.axis is not None
    with console.progress("extract", "steps" if parts.config.subspace.method in UNNAMED else "prompts") as advance:
        subspace = prepare_subspace(parts, advance, axes=axes)()
    check_subspace(parts, subspace)
    return subspace


def prepare_subspace(parts: Parts, progress: Callable[[int, int], None] | None = None, *, axes: bool = False
                     ) -> Callable[[], Subspace]:
    """Read and check the inputs of an extraction, and return the function that makes the subspace. ConfigError if `monitor.axis`
    names an axis that it cannot have. `progress`, `axes`: as in `extraction_job`."""
    job, axis = extraction_job(parts, progress, axes=axes), parts.config.monitor.axis
    make = prepare(job)
    if axis is not None:
        check_axis(axis, axis_names(job))
    return make


def extraction_job(parts: Parts, progress: Callable[[int, int], None] | None = None, *, axes: bool = False) -> Job:
    """The inputs of an extraction with the model and the settings in `parts`. `progress` is called with two numbers of steps or
    prompts, (done, total); `axes` is as in `make_subspace`."""
    config = parts.config
    return Job(parts.model, parts.tokenizer, config.subspace, config.model.path, parts.hash, config.seed, progress, axes,
               behave=partial(flagged, parts.model, parts.tokenizer, parts.environments, config, parts.max_new_tokens))


def check_subspace(parts: Parts, subspace: Subspace) -> None:
    """Raise SubspaceError if the subspace belongs to another model."""
    width = parts.model.config.get_text_config().hidden_size
    subspace.check_model(model=parts.config.model.path, model_hash=parts.hash, width=width,
                         layers=len(decoder_layers(parts.model)))


def make_router(parts: Parts, subspace: Subspace | None, inherited: Sequence[str] = ()) -> Router | None:
    """Freeze the parameters that the config names, route the writers in place, and return the router; None in mode `none`.

    `inherited` names environments that are no longer trained on but whose parts are still in the quarantine.
    """
    config = parts.config
    if config.routing.mode == "none":
        freeze(parts.model, config.model.freeze)
        return None
    if config.routing.mode == LABELS:
        names = [*(loaded.name for loaded in parts.trained), *inherited]
        return route_by_labels(parts.model, config.routing, names, frozen=config.model.freeze, seed=config.seed)
    if subspace is None:
        raise SubspaceError(f"routing.mode={config.routing.mode} needs a subspace; set subspace.prompts=FILE.jsonl")
    frozen = [*config.model.freeze, *(["post_norm"] if parts.adapted is not None else [])]  # an adapter trains no gain of a norm
    check_routable(parts.writers, frozen, config.trainer.get("router_aux_loss_coef"))
    bases, names = bases_of(subspace, config.subspace), [*(loaded.name for loaded in parts.trained), *inherited]
    return route_model(parts.model, parts.writers, subspace, config.routing, names, bases=bases, frozen=config.model.freeze,
                       axis=config.monitor.axis, seed=config.seed)
