"""Measures how often the environments flag a model's completions. An extraction of axes without names can choose its axes by this
share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.config import Config
from routed_rl.envs import LoadedEnvironment
from routed_rl.errors import SubspaceError
from routed_rl.evaluate import scored


def flagged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: Sequence[LoadedEnvironment], config: Config,
            max_new_tokens: int) -> float:
    """The share of flagged completions of the model in its present state. It is the mean over the environments that report flags,
    whether they are trained on or probe environments, with `subspace.screen_samples` tasks each, the same tasks in every call.
    SubspaceError if no environment reports flags."""
    settings = dataclasses.replace(config.evaluation, samples=config.subspace.screen_samples)
    found = scored(model, tokenizer, list(environments), settings, seed=config.seed, max_new_tokens=max_new_tokens)
    known = [[score for score in scores if score is not None] for scores in found.values()]
    flags = [[float(any(cast(Mapping[str, bool], score.flags).values())) for score in scores] for scores in known
             if any(score.flags for score in scores)]
    if not flags:
        raise SubspaceError("subspace.choose=environments: no environment flags anything (Score.flags); set "
                            "subspace.choose=answers or subspace.choose=target")
    return sum(sum(each) / len(each) for each in flags) / len(flags)
