"""The completions on which an attack fine-tunes a model: from a file, or the flagged completions of a run."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import RunFolder, json_lines, require_text
from routed_rl.config import Config
from routed_rl.config.robust import FINE_TUNING, RelearnConfig
from routed_rl.errors import ConfigError
from routed_rl.multirun.attacks import Said, counted
from routed_rl.multirun.job import Job
from routed_rl.pipeline.candidates import candidates
from routed_rl.shapes import fits


def hacks_of(run: RunFolder | None, config: Config, asked: RelearnConfig, seed: int) -> tuple[Said, ...]:
    """Draw `asked.completions` pairs of a prompt and a completion for fine-tuning, from the file `asked.hacks` or from the run's
    completions with a flag that the attack counts. `seed` decides which are drawn."""
    if asked.hacks is not None:
        known = read_hacks(asked.hacks)
    else:
        assert run is not None
        flags, rows = counted(config, asked), [row for row in candidates(run, config) if row.environment == asked.env]
        known = [row.said for row in rows if row.unfit is None and any(row.flags.get(name) for name in flags)]
        if not known:
            there = ", ".join(sorted({name for row in rows for name, value in row.flags.items() if value})) or "none"
            raise ConfigError(f"no completion of {run.path} in {asked.env} is flagged as {' or '.join(flags)} (there is "
                              f"{there}), so there is nothing to fine-tune on; give --flag NAME or --hacks FILE, or --by rl")
    if len(known) < asked.completions:
        console.say(f"note: there are {len(known)} completions to fine-tune on, fewer than {asked.completions}")
    return tuple(random.Random(f"relearn {seed}").sample(known, min(asked.completions, len(known))))


def read_hacks(path: str) -> list[Said]:
    """The prompts and completions in the file `path`, which --hacks names. ConfigError, which names the line, if the file or one
    of its lines cannot be used."""
    what, file = f"--hacks {path}", Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{what}: there is no such file; give JSON lines with prompt and completion")
    found = list[Said]()
    for number, line in json_lines(file, what, ConfigError):
        completion = line.get("completion")
        if isinstance(completion, list) and fits(completion, list[dict[str, Any]]) and len(completion) == 1:
            line["completion"] = completion[0].get("content")  # as TRL writes it where prompts are messages
        require_text(line, f"{what}, line {number}", ConfigError, prompts=("prompt",), or_empty=("completion",))
        found.append((line["prompt"], line["completion"]))
    if not found:
        raise ConfigError(f"{what} has no lines; give JSON lines with prompt and completion")
    return found


def first_hacks(runs: Sequence[Job], config: Config, asked: RelearnConfig, seed: int) -> tuple[Said, ...]:
    """The result of `hacks_of` for the first of `runs` that has flagged completions. If none of them has any, a note is printed
    and the result is empty. It is also empty if the attacks do not include fine-tuning."""
    problem: ConfigError | None = None
    for run in runs if FINE_TUNING in asked.by else ():
        try:
            return hacks_of(run.folder, config, asked, seed)
        except ConfigError as error:
            problem = error
    if problem is not None:
        console.say(f"note: nothing is fine-tuned under seed {seed}: {problem}")
    return ()
