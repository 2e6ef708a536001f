"""Finds reference answers, which are answers of both personas to the same question. Steering the stream along a good axis makes
the answers of one persona more likely and those of the other less likely."""

from dataclasses import dataclass

import torch

from routed_rl.artifacts import require_text
from routed_rl.errors import SubspaceError
from routed_rl.extraction.contrast import check_ids, data_file, prompt_ids, read_lines
from routed_rl.extraction.job import OWN, Job
from routed_rl.extraction.personas import ask, persona_pairs, read_questions
from routed_rl.extraction.responses import respond, why_silent
from routed_rl.model.prompts import encode_prompts, ids_of
from routed_rl.model.stream import eval_mode

FEWEST = 8
"""The smallest number of preference pairs on which an axis is trained, or by which axes are chosen."""


@dataclass(frozen=True)
class Answers:
    """One question as token ids (`prompt`), with the answer of the positive persona and that of the negative persona."""

    prompt: tuple[int, ...]
    positive: tuple[int, ...]
    negative: tuple[int, ...]


def reference_answers(job: Job, method: str) -> tuple[list[Answers], str]:
    """Return the reference answers for the causal check, at most `check.answers` of them, and the name of their source; ([], "")
    if there is no source. `method`: the method that found the axes. If this method reads responses that the model writes itself,
    the model also writes the answers, to questions that the extraction does not use. If no such questions are left, or the user
    has set a file of answers, or no responses can be sampled of this model, they are read from a file."""
    path = job.config.answers_for(job.model_path)
    writes = method in OWN and not job.config.answers and why_silent(job.model, job.tokenizer) is None
    if writes and (spare := read_questions(job.config, None)[job.config.questions:]):
        return (_written_by_the_model(job.changed(method=method), spare[: job.config.check.answers]),
                "the model's own answers to questions that the axes have not seen")
    return (_from_file(job, path, "answers", slice(job.config.check.answers)), path) if path is not None else ([], "")


def preference_pairs(job: Job) -> tuple[list[Answers], str]:
    """Return the preference pairs on which axes are trained or by which they are chosen, and their file. The file is
    `subspace.pairs` or, if that is not set, the file of reference answers. The lines of this file that the causal check uses are
    left out, so that the check stays held out. SubspaceError if there are fewer than `FEWEST`."""
    needs = f"subspace.method={job.config.method}" + " with subspace.choose=answers" * (job.config.method == "dct")
    path, first = _pairs_file(job)
    if path is None:
        raise SubspaceError(f"{needs} needs preference pairs, and none are known for {job.model_path}; set "
                            "subspace.pairs=FILE.jsonl, {\"prompt\": ..., \"positive\": ..., \"negative\": ...} a line")
    found = _from_file(job, path, "pairs" if job.config.pairs else "answers", slice(first, None))
    if len(found) < FEWEST:
        held = f" behind the {first} that the causal check uses" if first else ""
        raise SubspaceError(f"{needs} needs {FEWEST} preference pairs or more, {path} has {len(found)}{held}; add lines"
                            + ", or lower subspace.check.answers" * bool(first))
    return found, path


def pairs_prompts(job: Job) -> tuple[list[tuple[int, ...]], str]:
    """Return the token ids of the prompts of the preference pairs, and the pairs' file; ([], "") if there is no file. They are
    the prompts of `preference_pairs` or, where that function would find too few pairs, the prompts of all lines in the file."""
    path, first = _pairs_file(job)
    if path is None:
        return [], ""
    what, setting = ("pairs file", "subspace.pairs") if job.config.pairs else ("answers file", "subspace.answers")
    prompts = [prompt_ids(job.tokenizer, record["prompt"], job.model, f"{what} {path}, line {line}")
               for line, record in read_lines(path, what, setting, prompts=("prompt",))]
    return prompts[first:] if len(prompts) - first >= FEWEST else prompts, path


def _pairs_file(job: Job) -> tuple[str | None, int]:
    """Return the file of preference pairs (None if there is none), and how many of its first lines the causal check uses."""
    answers = job.config.answers_for(job.model_path)
    path = job.config.pairs or answers
    shared = path is not None and answers is not None and data_file(path) == data_file(answers)
    return path, job.config.check.answers if shared else 0


def _from_file(job: Job, path: str, setting: str, lines: slice) -> list[Answers]:
    found = []
    for line, record in read_lines(path, f"{setting} file", f"subspace.{setting}", prompts=("prompt",))[lines]:
        where = f"{setting} file {path}, line {line}"
        names = ("rejected", "chosen") if "rejected" in record or "chosen" in record else ("positive", "negative")
        require_text(record, where, SubspaceError, texts=names)
        prompt = prompt_ids(job.tokenizer, record["prompt"], job.model, where)
        sides = [tuple(ids_of(job.tokenizer, record[side])) for side in names]
        if not all(sides):
            raise SubspaceError(f"{where}: \"{names[sides.index(())]}\" has no token for this model, so it has no likelihood; "
                                "leave the line out")
        if sides[0] == sides[1]:
            raise SubspaceError(f"{where}: \"{names[0]}\" and \"{names[1]}\" are the same, so neither is preferred; leave it out")
        for ids in sides:
            check_ids(prompt + ids, job.model, where)
        found.append(Answers(prompt, *sides))
    return found


def _written_by_the_model(job: Job, questions: list[str]) -> list[Answers]:
    """Let the model answer each question twice: under the prompt that elicits a persona, and under the opposite prompt. The
    personas of the list take turns, one for each question. The returned `prompt` is the question without a persona, so that the
    likelihood of an answer does not depend on the persona's text."""
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
