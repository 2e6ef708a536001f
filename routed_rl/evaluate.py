"""Evaluates a model on environments. Every model gets the same tasks and random numbers, so that models can be compared.

Not covered: the trainer's own top_k / top_p; completions are drawn from the full distribution.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.config import EvaluationConfig
from routed_rl.envs import (
    Conversation,
    EpisodicEnvironment,
    LoadedEnvironment,
    Message,
    Prompt,
    Score,
    Scorer,
    Task,
    has_episodes,
    means,
    task_stream,
)
from routed_rl.errors import TaskError
from routed_rl.model.adapter import plain
from routed_rl.model.chat import ChatTokens
from routed_rl.model.prefill import sharing_prompts
from routed_rl.model.prompts import encode_prompts, eos_ids, padded
from routed_rl.model.stream import eval_mode
from routed_rl.ranks import RANKS
from routed_rl.rollout import Sampling, Served, begin, play


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of an evaluation."""

    prompt: Prompt
    """The prompt of the task. For an episode, the messages with which it began."""
    completion: str | list[Message]
    """The text that the model wrote. For an episode, all messages after those with which it began."""
    score: Score | None
    """The score of the completion; None if it could not be scored."""


ScoreBatch = Callable[[list[Task], int], list[Answer]]
"""Function that maps tasks, and the seed of their batch, to one answer for each task."""
Complete = Callable[[list[list[int]], int], list[list[int]]]
"""Function that maps prompts (token ids) and a seed to the token ids of one completion for each prompt."""
Progress = Callable[[int, int], None]
"""Function (completions done, completions in all) -> None, called after each batch."""
Told = Callable[[dict[str, list[Answer]]], None]
"""Function that `scored` calls at its end with the first answers in each environment, by the environment's name."""


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: list[LoadedEnvironment],
             config: EvaluationConfig, *, seed: int, max_new_tokens: int, progress: Progress | None = None,
             served: Served | None = None, deployed: bool = False, share: bool = False,
             told: Told | None = None) -> dict[str, dict[str, float]]:
    """Evaluate a model and return the means over the scores that `scored` gives, as {environment: {reward, solve, every flag and
    metric, completions, failures}}; {} if `config.samples` is 0. The parameters and the errors are those of `scored`. As a side
    effect each environment remembers which flags its scores have."""
    found = scored(model, tokenizer, environments, config, seed=seed, max_new_tokens=max_new_tokens, progress=progress,
                   served=served, deployed=deployed, share=share, told=told)
    for loaded in environments:
        loaded.flags.update(flag for score in found.get(loaded.name, []) if score is not None for flag in score.flags)
    return {name: average(name, scores) for name, scores in found.items()}


def scored(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: list[LoadedEnvironment],
           config: EvaluationConfig, *, seed: int, max_new_tokens: int, progress: Progress | None = None,
           served: Served | None = None, deployed: bool = False, share: bool = False,
           told: Told | None = None) -> dict[str, list[Score | None]]:
    """Score one completion of the model for each task, and return {environment: the scores of its tasks}. Every model gets the
    same tasks in the same order. A score is None where scoring failed; a failure never counts as reward 0.

    There are `config.samples` tasks of the split "eval" per environment, with one completion each. The completions depend only on
    the seed, the environment's name and the model. Training mode and random state are left as they were. If an engine `served` is
    given, it generates the completions in place of `model`: as the policy, or with `deployed` as the deployed model. With `share`
    the processes of a run divide the batches among them, and each returns all scores; otherwise each process makes all batches.
    `progress` is called after each batch, and `told` at the end, with the first `config.answers` answers in each environment.
    Raises TaskError for an environment without tasks, or one that fails to score too often.
    """
    complete = _completer(model, tokenizer, config, max_new_tokens, served, deployed)
    scorer = Scorer({loaded.name: loaded for loaded in environments}, config.max_failures)
    if served is not None and config.samples:
        served.show(deployed=deployed)  # called here, because a process may have no batch
    done, total, turns = 0, config.samples * len(environments), itertools.count()
    scores: dict[tuple[str, int], list[Score | None]] = {}
    first: dict[tuple[str, int], list[Answer]] = {}
    with eval_mode(model), own_randomness():
        for loaded in environments if config.samples else []:
            tasks = list(itertools.islice(task_stream(loaded, "eval", seed), config.samples))
            score_batch = (_player(tokenizer, loaded, scorer, complete, max_new_tokens) if has_episodes(loaded.environment)
                           else _single_turn(tokenizer, loaded, scorer, complete))
            for start in range(0, len(tasks), config.batch_size):
                batch = slice(start, start + config.batch_size)
                if not share or next(turns) % RANKS.count == RANKS.rank:
                    # Seeded for each batch, because the model decides how many numbers the batch before has drawn.
                    seed_all(batch_seed := stable_seed(seed, loaded.name, start))
                    answers = score_batch(tasks[batch], batch_seed)
                    scores[loaded.name, start] = [answer.score for answer in answers]
                    if told is not None and start < config.answers:
                        first[loaded.name, start] = answers[:config.answers - start]
                    scorer.check()
                done += len(tasks[batch])
                if progress is not None:
                    progress(done, total)
    names = [loaded.name for loaded in environments] if config.samples else []
    if told is not None:
        told(_in_order(first, names, share=share))
    return _in_order(scores, names, share=share)


def _in_order(batches: dict[tuple[str, int], list[Any]], names: Sequence[str], *, share: bool) -> dict[str, list[Any]]:
    """Join the batches of each environment in `names`, in order, and return {environment: contents}. A key of `batches` is an
    environment and the number of the batch's first task. With `share`, the batches of all processes are joined."""
    if share:
        batches = {place: found for each in RANKS.gather(batches) for place, found in each.items()}
    return {name: [each for place in sorted(batches) if place[0] == name for each in batches[place]] for name in names}


def _completer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EvaluationConfig, max_new_tokens: int,
               served: Served | None, deployed: bool) -> Complete:
    if served is None:
        return lambda prompts, seed: generate_ids(model, tokenizer, prompts, config.temperature, max_new_tokens)
    stop = eos_ids(model, tokenizer)
    return lambda prompts, seed: served.complete(prompts, Sampling(config.temperature, max_new_tokens, stop, seed),
                                                 deployed=deployed)


def _single_turn(tokenizer: PreTrainedTokenizerBase, loaded: LoadedEnvironment, scorer: Scorer, complete: Complete) -> ScoreBatch:
    def score(tasks: list[Task], seed: int) -> list[Answer]:
        ids = complete(encode_prompts(tokenizer, [task.prompt for task in tasks]), seed)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        scores = scorer.score_many(loaded.name, list(zip(tasks, texts, strict=True)))
        return [Answer(task.prompt, text, found) for task, text, found in zip(tasks, texts, scores, strict=True)]

    return score


def _player(tokenizer: PreTrainedTokenizerBase, loaded: LoadedEnvironment, scorer: Scorer, complete: Complete,
            max_new_tokens: int) -> ScoreBatch:
    chat, environment = ChatTokens(tokenizer), cast(EpisodicEnvironment, loaded.environment)

    def score(tasks: list[Task], seed: int) -> list[Answer]:
        conversations = [Conversation(environment, task) for task in tasks]
        turns = itertools.count(seed, len(tasks))  # no two rows or turns share a seed
        play([begin(conversation, chat) for conversation in conversations],
             lambda live: (complete([row.ids for row in live], next(turns)), None), chat, max_new_tokens)
        return [Answer(each.messages[:each.first], each.messages[each.first:], scorer.count(loaded.name, each.outcome))
                for each in conversations]

    return score


def average(name: str, scores: Sequence[Score | None]) -> dict[str, float]:
    """The means over the `scores` of the environment `name`, with the numbers of `completions` and of `failures`. Raises
    TaskError if no completion could be scored."""
    if not (found := means(scores)):
        raise TaskError(f"environment {name} scored none of {len(scores)} completions; fix env.{name}")
    return {**found, "completions": float(len(scores)), "failures": float(sum(score is None for score in scores))}


def generate_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], temperature: float,
                 max_new_tokens: int) -> list[list[int]]:
    """The ids of one completion per prompt, up to and including the first eos. Temperature 0 is greedy. The function draws from
    the global random state."""
    eos = eos_ids(model, tokenizer)
    pad = int(cast(int, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]))
    ids_BT, mask_BT = (each.to(model.device) for each in padded(prompts, pad, side="left"))
    sampling: dict[str, Any] = ({"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
                                if temperature > 0 else {"do_sample": False})
    settings = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad, use_cache=True,
                                bos_token_id=tokenizer.bos_token_id, disable_compile=True, repetition_penalty=1.0, **sampling)
    with sharing_prompts(plain(model)):
        output_BT = cast(Any, model).generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings)
    return _cut(output_BT[:, ids_BT.shape[1]:], eos)


def _cut(completions_BT: Tensor, eos: list[int]) -> list[list[int]]:
    """The token ids of each row, up to and including its first eos."""
    ends = set(eos)
    rows = completions_BT.tolist()
    return [row[:next((place for place, token in enumerate(row) if token in ends), len(row)) + 1] for row in rows]


def stable_seed(seed: int, name: str, start: int) -> int:
    """A seed for the batch of the environment `name` that begins with task number `start`. It is the same in every process. A
    seed from Python's `hash` would not be, because `hash` is salted in each process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{start}".encode()).digest()[:7])


def seed_all(seed: int) -> None:
    """Seed every global source of random numbers, because an environment in this process may draw from any of them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def own_randomness() -> Iterator[None]:
    plain, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)
