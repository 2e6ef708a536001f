"""Finds environments that return no score, or not the scores that an arm needs, before a run writes anything or takes long. Not
covered: episodes, which only a model can play."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from transformers import PreTrainedTokenizerBase

from routed_rl import console
from routed_rl.config import LABELS, Config
from routed_rl.envs import Failure, LoadedEnvironment, Score, has_episodes, score_many, task_stream
from routed_rl.envs.contract import gold_of
from routed_rl.envs.loading import DATASET, class_path
from routed_rl.envs.scoring import accepted, scorer_line
from routed_rl.errors import ConfigError, TaskError
from routed_rl.model.prompts import encode_prompts
from routed_rl.training.baselines import check_flags
from routed_rl.training.spans import check_targets


def check_evaluated(config: Config, environments: Sequence[LoadedEnvironment], tokenizer: PreTrainedTokenizerBase | None = None
                    ) -> None:
    """Make the first evaluation task of each environment, if the run evaluates anything. TaskError if there is none, or if making
    it fails; ModelError if `tokenizer` (None: not tried) cannot take its prompt, such as a system message of evaluation.contexts.
    Without this check, the run would end only when the base model is evaluated, after the extraction."""
    for loaded in environments if config.evaluation.samples or config.evaluation.every else ():
        task = next(task_stream(loaded, "eval", config.seed))
        if tokenizer is not None and not has_episodes(loaded.environment):
            encode_prompts(tokenizer, [task.prompt])


def check_first_scores(config: Config, environments: Sequence[LoadedEnvironment]) -> None:
    """Have each environment score one completion of its first task: the task's gold completion, or an empty text. TaskError if
    the result is no `Score` or has a flag or metric with a wrong name. ConfigError if the scores lack a flag, a metric or a
    span that the arm needs. An exception that scoring raises is ignored here, because training counts it as a failure."""
    _check_spans(config, environments)
    scores: list[Score | None] = []
    for loaded in environments:
        if not has_episodes(loaded.environment):
            environment: Any = loaded.environment
            task = next(task_stream(loaded, "train", config.seed))
            text: Any = ""
            with suppress(Exception):  # training needs no gold completions; `env check` tells what is wrong with them
                text = gold_of(environment, task)
            found = accepted(score_many(environment, [(task, text if isinstance(text, str) else "")])[0],
                             lambda environment=environment: scorer_line(environment))
            if isinstance(found, Failure) and found.breaks_contract:
                raise TaskError(found.of(loaded.name))
            scores.append(found if isinstance(found, Score) else None)
    if config.asks_detector:
        check_flags(config.baseline.detector, scores)
        _check_reported(config, environments, scores)
    if config.baseline.target_rewards:
        check_targets(scores)


def _check_spans(config: Config, environments: Sequence[LoadedEnvironment]) -> None:
    """ConfigError if an arm goes by places in the text of a completion and an environment has episodes, whose text has turns of
    the environment too."""
    by_span = ("baseline.target_rewards=true" if config.baseline.target_rewards else "routing.labels.unit=token"
               if config.routing.mode == LABELS and config.routing.labels.unit == "token" else "")
    if by_span and (playing := [loaded.name for loaded in environments if has_episodes(loaded.environment)]):
        raise ConfigError(f"{by_span} goes by places in the text of a completion, and environment {playing[0]} has episodes, in "
                          "whose text other turns stand between those of the model; leave that environment out, or set "
                          f"{by_span.partition('=')[0]}={'false' if config.baseline.target_rewards else 'row'}")


def _check_reported(config: Config, environments: Sequence[LoadedEnvironment], scores: Sequence[Score | None]) -> None:
    """ConfigError if the arm goes by flags and every environment is a dataset without functions for flags. A class may report a
    flag only where it holds, so if no first score has a flag this is just said."""
    if config.routing.mode == LABELS and not (config.routing.labels.route or config.learns_detector):
        return  # a control, in which every row teaches alike
    arm = (f"routing.mode={LABELS}" if config.routing.mode == LABELS else "baseline.screen=true" if config.baseline.screen else
           "baseline.imitate=true" if config.baseline.imitate else f"baseline.penalty={config.baseline.penalty}")
    settings = {loaded.name: config.mixture.get(loaded.name, {}) for loaded in environments}
    silent = [name for name, each in settings.items() if class_path(each) == DATASET and not any(
        stage.get("flags") for stage in [each, *(each.get("stages") or [])])]
    if len(silent) == len(environments):
        raise ConfigError(f"{arm} goes by the flags of completions, and env.{silent[0]} is a dataset that reports none; set "
                          f"env.{silent[0]}.flags={{{config.baseline.detector.flags[0]}: FILE.py:function}}, or take another arm")
    if not any(score.flags for score in scores if score is not None):
        console.say(f"note: {arm} goes by the flags of completions, and no environment's first score has one; if none ever has "
                    "one, this arm changes nothing")
