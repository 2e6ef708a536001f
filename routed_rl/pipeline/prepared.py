"""Prepares a run: loads its objects, checks everything that can be known before it begins, and shows its plan. Nothing is
written, so a refused command changes nothing."""

from transformers.utils import logging as transformers_logging

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.envs import check_prompts, has_episodes
from routed_rl.errors import ConfigError
from routed_rl.pipeline import record
from routed_rl.pipeline.build import Parts, describe_parts, load_parts, prepare_subspace
from routed_rl.pipeline.detecting import check_detector
from routed_rl.pipeline.engines import check_served
from routed_rl.pipeline.kept import check
from routed_rl.pipeline.plan import show_plan
from routed_rl.subspace import Subspace
from routed_rl.training.backends import PIECES
from routed_rl.training.baselines import PromptContexts
from routed_rl.training.first_scores import check_evaluated, check_first_scores
from routed_rl.training.generations import prompts_needed
from routed_rl.training.plan import Plan, make_plan
from routed_rl.training.practice import check_practice, check_practising
from routed_rl.training.route import check_axis
from routed_rl.training.trials import try_out


def described(config: Config, run: RunFolder) -> None:
    """Show the plan of a run that trains elsewhere. The model folder here needs no weights, only a config and a tokenizer."""
    transformers_logging.set_verbosity_error()
    check_names(config, run)
    plan, parts = make_plan(config, run, here=False), describe_parts(config)
    check_prompts(parts.trained, config.seed)
    show_plan(parts, plan, account=True)
    console.say(f"weights       there are none in {config.model.path}: shapes are of its config.json, nothing was tried out")


def check_names(config: Config, run: RunFolder, before: RunFolder | None = None) -> None:
    """ConfigError if a setting names an environment that the run does not have, or does not train on, or if a rule of the monitor
    is to halt without a limit. `before` is the earlier run from whose checkpoint `run` begins, in a rollback."""
    check(config, config.keep, "keep.", run if run.manifest.exists() else None)
    trains, begun = record.trained_settings(config), before or run
    if config.routing.practises:
        check_practising(config.routing, list(trains))
    was = record.read_config(begun).monitor if begun.config.exists() else None
    config.monitor.check_halting(was)
    config.monitor.check_names([*trains, *record.inherited(begun)] if begun.manifest.exists() else trains, was)


def prepared(config: Config, run: RunFolder, before: RunFolder | None = None, *, account: bool = False) -> tuple[Parts, Plan]:
    """Load the objects of a run and check everything that can be checked before anything is written, so that a refused command
    changes nothing. The plan is shown; `account` shows its memory line by line. `before` is the earlier run of a rollback, whose
    subspace is used."""
    transformers_logging.set_verbosity_error()
    check_names(config, run, before)
    plan, parts = make_plan(config, run), load_parts(config)
    if (begun := before or run).manifest.exists():
        record.require_base(begun, config, parts.hash)
    check_served(parts)
    check_detector(parts)
    try_out(plan, parts.model, parts.tokenizer)
    check_prompts(parts.trained, config.seed)
    check_first_scores(config, parts.trained)
    check_evaluated(config, parts.evaluated, parts.tokenizer)  # which also reports a context without a text
    if config.baseline.told:
        PromptContexts(config.baseline, parts.trained).check(config.baseline, parts.trained, config.seed, parts.tokenizer)
    check_practice(config, parts.trained, prompts_needed(plan.arguments) * config.launch.world)
    _check_strategy(parts)
    if config.takes_subspace:
        if (subspace := (before or run).subspace).exists():
            check_axis(config.monitor.axis, Subspace.load(subspace).axis_names)
        else:
            prepare_subspace(parts)  # the result is not used
    show_plan(parts, plan, account=account)
    return parts, plan


def _check_strategy(parts: Parts) -> None:
    """ConfigError if `launch.strategy` cuts weights into pieces, of which each process holds some, and the run needs whole
    weights: for environments with episodes that transformers plays, or for experts that are routed by subspace."""
    config = parts.config
    if config.launch.strategy not in PIECES:
        return
    together = parts.environments if config.evaluation.every else parts.trained
    if config.rollout.engine == "transformers" and (
            playing := [loaded.name for loaded in together if has_episodes(loaded.environment)]):
        raise ConfigError(f"environment {playing[0]} has episodes, which end apart, and with launch.strategy="
                          f"{config.launch.strategy} no process can go on alone; set rollout=vllm_server, or launch=zero2 or ddp")
    if config.routing.by_subspace and any(writer.expert is not None for writer in parts.writers):
        raise ConfigError(f"launch.strategy={config.launch.strategy} cuts the experts of {config.model.path} into pieces, "
                          "which cannot be routed; set launch=zero2 or launch=ddp")
