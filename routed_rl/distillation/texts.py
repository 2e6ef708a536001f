"""The texts from which the student learns: the teacher's own completions of the environments' prompts, and generic text from a
file.

Prompts are those of the tasks, without the contexts of `baseline.contexts`. Not covered: episodes.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import json_lines, require_text
from routed_rl.canary import is_canary
from routed_rl.config import Config
from routed_rl.distillation.divergence import Row
from routed_rl.envs import LoadedEnvironment, Scorer, has_episodes, task_stream
from routed_rl.errors import ConfigError, reading
from routed_rl.evaluate import generate_ids, own_randomness, seed_all, stable_seed
from routed_rl.model.prompts import encode_prompts, ids_of
from routed_rl.model.stream import eval_mode
from routed_rl.training.baselines import is_marked

LONGEST = 512
"""Largest number of tokens of a generic text; a longer text is cut into several."""
NO_LINES = (".json", ".csv", ".tsv", ".parquet", ".arrow", ".zip", ".gz")
"""Endings of the names of files whose lines are not texts."""


def chosen(environments: Sequence[LoadedEnvironment], names: list[str] | None) -> list[LoadedEnvironment]:
    """Choose the environments with these names (None: all), whose prompts the teacher answers. ConfigError for an unknown name,
    and for an environment with episodes."""
    known = [loaded.name for loaded in environments]
    if missing := [name for name in names or [] if name not in known]:
        raise ConfigError(f"--env {missing[0]} is no environment of this run; it has {', '.join(known)}")
    found = [loaded for loaded in environments if names is None or loaded.name in names]
    if playing := [loaded.name for loaded in found if has_episodes(loaded.environment)]:
        raise ConfigError(f"environment {playing[0]} has episodes, which no teacher writes alone; choose others: --env "
                          f"{','.join(name for name in known if name not in playing) or 'NAME'}")
    return found


def read_texts(path: str, tokenizer: PreTrainedTokenizerBase, longest: int | None = None) -> list[Row]:
    """Read the texts of a file: one on each line, or the values of `text` in JSON lines. Lines that hold a canary are left out.
    `longest`: the number of tokens that the model takes at most, if it has such a limit. ConfigError if the file has no text, or
    if its lines are not texts."""
    file = Path(path).expanduser()
    if file.suffix.lower() in NO_LINES:
        raise ConfigError(f"--text {path} is a {file.suffix} file, whose lines are not texts; give a file with one text a line, "
                          "or JSON lines with `text` (.jsonl)")
    size = min(LONGEST, longest or LONGEST)
    texts = _values_of_text(file, f"--text {path}") if file.suffix == ".jsonl" else _lines_of(file, f"--text {path}")
    rows = [Row(ids[at:at + size], 1) for text in texts if (ids := ids_of(tokenizer, text, add_special_tokens=True))
            for at in range(0, len(ids), size)]
    rows = [row for row in rows if row.counted > 0]
    if not rows:
        raise ConfigError(f"--text {path} has no text of two tokens; give a file with one text a line, or JSON lines with `text`")
    return rows


def _lines_of(file: Path, what: str) -> list[str]:
    with reading(ConfigError, f"{what} cannot be read; give a file with one text a line, or JSON lines with `text`"):
        lines = [line.rstrip("\r") for line in file.read_text(encoding="utf-8-sig").split("\n")]
    return [line for line in lines if line.strip() and not is_canary(line)]


def _values_of_text(file: Path, what: str) -> list[str]:
    lines = json_lines(file, what, ConfigError)
    for number, line in lines:
        require_text(line, f"{what}, line {number}", ConfigError, or_empty=("text",))
    return [line["text"] for _, line in lines]


def completions(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: Sequence[LoadedEnvironment],
                config: Config, samples: int, advance: Callable[[int, int], None] | None = None) -> list[Row]:
    """Let the teacher write `samples` completions in each environment, for other tasks than those of an evaluation. `advance` is
    called with the number of completions so far and in all."""
    size, limit = config.evaluation.batch_size, config.trainer.get("max_completion_length", 256)
    scorer, rows = Scorer({loaded.name: loaded for loaded in environments}, config.evaluation.max_failures), list[Row]()
    with eval_mode(teacher), torch.no_grad(), own_randomness():
        for loaded in environments:
            tasks = list(islice(task_stream(loaded, "train", config.seed + 1), samples))
            for start in range(0, len(tasks), size):
                batch = tasks[start:start + size]
                seed_all(stable_seed(config.seed, f"robustify {loaded.name}", start))
                prompts = encode_prompts(tokenizer, [task.prompt for task in batch])
                written = generate_ids(teacher, tokenizer, prompts, 1.0, limit)
                texts = tokenizer.batch_decode(written, skip_special_tokens=True)
                scores = scorer.score_many(loaded.name, list(zip(batch, texts, strict=True)))
                scorer.check()
                rows += [Row(prompt + ids, len(prompt), loaded.name, bool(score and is_marked(config.baseline.detector, score)))
                         for prompt, ids, score in zip(prompts, written, scores, strict=True)]
                if advance is not None:
                    advance(len(rows), samples * len(environments))
    return rows
