"""Reference answers of both personas to the same question, teacher-forced: what steering should make more or less likely.

From a file, or, for roles and traits, written by the model itself under either prompt to questions that no axis has seen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from routed_rl.errors import ModelError, SubspaceError
from routed_rl.extraction.activations import evaluating
from routed_rl.extraction.contrast import check_ids, is_prompt, read_lines
from routed_rl.extraction.job import Job
from routed_rl.extraction.personas import neutral, spare_questions, unasked_pairs
from routed_rl.extraction.responses import respond
from routed_rl.model.prompts import encode_prompts

OWN = ("assistant_axis", "persona_vectors")
"""Methods whose axes are about what the model writes itself; only a file that the user sets comes before that."""


@dataclass(frozen=True)
class Answers:
    """Token ids of one question and of either persona's answer to it."""

    prompt: tuple[int, ...]
    positive: tuple[int, ...]
    negative: tuple[int, ...]


def reference_answers(job: Job, method: str) -> tuple[list[Answers], str]:
    """At most `check.answers` of them, and where they are from; empty where there is no source. `method` found the axes."""
    path = job.config.answers_for(job.model_path)
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, method=method)) if method in OWN else job
    if method in OWN and path in (None, job.config.known_answers.get(job.model_path)) and spare_questions(job.config):
        return _written_by_the_model(job), "the model's own answers to questions that the axes have not seen"
    if path is None:
        return [], ""
    return _from_file(job, path), path


def _from_file(job: Job, path: str) -> list[Answers]:
    what, found = "answers file", []
    for line, record in read_lines(path, what, "subspace.answers")[: job.config.check.answers]:
        where = f"{what} {path}, line {line}"
        if not is_prompt(record.get("prompt")) or not all(isinstance(record.get(side), str) and record[side]
                                                          for side in ("positive", "negative")):
            raise SubspaceError(f"{where} needs \"prompt\", \"positive\" and \"negative\" (it has: "
                                f"{', '.join(record) or 'nothing'})")
        try:
            prompt = tuple(encode_prompts(job.tokenizer, [record["prompt"]])[0])
        except ModelError as error:
            raise SubspaceError(f"{where}: {error}") from error
        sides = [tuple(_answer(job.tokenizer, record[side])) for side in ("positive", "negative")]
        for ids in sides:
            check_ids(prompt + ids, job.model, where)
        found.append(Answers(prompt, *sides))
    if not found:
        raise SubspaceError(f"{what} {path} is empty; write {{\"prompt\": ..., \"positive\": ..., \"negative\": ...}} a line")
    return found


def _answer(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return cast(list[int], tokenizer(text=text, add_special_tokens=False)["input_ids"])


def _written_by_the_model(job: Job) -> list[Answers]:
    """Each question once, under one persona's prompt and under its opposite's; both are judged without either."""
    pairs = unasked_pairs(job.config, job.tokenizer, job.config.check.answers)
    encode = [[tuple(ids) for ids in encode_prompts(job.tokenizer, prompts)] for prompts in (
        [pair.positive for _, pair in pairs], [pair.negative for _, pair in pairs],
        [neutral(job.config, job.tokenizer, question) for question, _ in pairs])]
    generator, sides = torch.Generator().manual_seed(job.seed), []
    with evaluating(job.model):
        for prompts in encode[:2]:
            sides.append([ids for start in range(0, len(prompts), job.config.batch_size) for ids in respond(
                job.model, prompts[start:start + job.config.batch_size], job.respond, generator)[0]])
    return [Answers(prompt, tuple(positive), tuple(negative))
            for prompt, positive, negative in zip(encode[2], *sides, strict=True)]
