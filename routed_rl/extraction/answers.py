"""Reference answers of both personas to the same question. Steering should make them more or less likely, teacher-forced."""

from dataclasses import dataclass

import torch

from routed_rl.extraction.contrast import check_ids, prompt_ids, read_lines
from routed_rl.extraction.job import OWN, Job
from routed_rl.extraction.personas import ask, persona_pairs, read_questions
from routed_rl.extraction.responses import respond
from routed_rl.model.prompts import encode_prompts, ids_of
from routed_rl.model.stream import eval_mode


@dataclass(frozen=True)
class Answers:
    """Token ids of one question and of both personas' answers to it."""

    prompt: tuple[int, ...]
    positive: tuple[int, ...]
    negative: tuple[int, ...]


def reference_answers(job: Job, method: str) -> tuple[list[Answers], str]:
    """At most `check.answers` reference answers, and their source; empty where there is no source. `method` found the axes. For
    methods that read the model's own responses, the answers are the model's own too, unless the user sets a file."""
    path = job.config.answers_for(job.model_path)
    if method in OWN and not job.config.answers and (spare := read_questions(job.config, None)[job.config.questions:]):
        return (_written_by_the_model(job.changed(method=method), spare[: job.config.check.answers]),
                "the model's own answers to questions that the axes have not seen")
    return (_from_file(job, path), path) if path is not None else ([], "")


def _from_file(job: Job, path: str) -> list[Answers]:
    records = read_lines(path, "answers file", "subspace.answers", prompts=("prompt",), texts=("positive", "negative"))
    found = []
    for line, record in records[: job.config.check.answers]:
        where = f"answers file {path}, line {line}"
        prompt = prompt_ids(job.tokenizer, record["prompt"], job.model, where)
        sides = [tuple(ids_of(job.tokenizer, record[side])) for side in ("positive", "negative")]
        for ids in sides:
            check_ids(prompt + ids, job.model, where)
        found.append(Answers(prompt, *sides))
    return found


def _written_by_the_model(job: Job, questions: list[str]) -> list[Answers]:
    """The model's answers to each question, one under a persona's prompt and one under its opposite; the personas take turns.
    Both answers are judged behind the question alone, without the personas' prompts."""
    every = persona_pairs(job.config, job.tokenizer, questions)
    personas, size = len(every) // len(questions), job.config.batch_size
    pairs = [every[place * personas + place % personas] for place in range(len(questions))]
    generator, sides = torch.Generator().manual_seed(job.seed), []
    with eval_mode(job.model):
        for prompts in ([pair.positive for pair in pairs], [pair.negative for pair in pairs]):
            ids = [tuple(each) for each in encode_prompts(job.tokenizer, prompts)]
            sides.append([tuple(answer) for start in range(0, len(ids), size)
                          for answer in respond(job.model, ids[start:start + size], job.respond, generator)[0]])
    asked = encode_prompts(job.tokenizer, [ask(job.config, job.tokenizer, "", question) for question in questions])
    return [Answers(tuple(prompt), positive, negative) for prompt, positive, negative in zip(asked, *sides, strict=True)]
