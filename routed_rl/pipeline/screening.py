"""Measures how often the environments flag a model's completions. An extraction of axes without names can choose its axes by this
share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.config import Config
from routed_rl.envs import LoadedEnvironment
from routed_rl.evaluate import scored


def flagged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: Sequence[LoadedEnvironment], config: Config,
            max_new_tokens: int) -> float:
    """The share of flagged completions of the model in its present state. It is the mean over all environments, whether they are
    trained on or probe environments, with `subspace.screen_samples` tasks each, the same tasks in every call. An environment
    without any flag counts as 0, because it may report flags only where they hold."""
    settings = dataclasses.replace(config.evaluation, samples=config.subspace.screen_samples)
    found = scored(model, tokenizer, list(environments), settings, seed=config.seed, max_new_tokens=max_new_tokens)
    flags = [[any(cast(Mapping[str, bool], score.flags).values()) for score in scores if score is not None]
             for scores in found.values()]
    shares = [sum(each) / len(each) for each in flags if each]
    return sum(shares) / len(shares) if shares else 0.0
