"""The verb `robustify`: distils the deployed model of a run into a copy of itself to which noise was added (Lee et al., 2025,
arXiv:2506.06278).

The same command continues where an earlier one stopped. Not covered: several processes.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from routed_rl import __version__, console
from routed_rl.artifacts import ROBUSTIFIED, RunFolder, alone_in, check_above, read_object, write_json
from routed_rl.config import Config
from routed_rl.config.robust import RobustifyConfig
from routed_rl.distillation.making import Given, Made, check, make
from routed_rl.distillation.models import require_deployed
from routed_rl.errors import ConfigError, command
from routed_rl.export.publish import publish
from routed_rl.model.weights import model_hash
from routed_rl.pipeline.finishing import finishing
from routed_rl.pipeline.record import read_config
from routed_rl.pipeline.summary import show_tables
from routed_rl.report.card import STUDENT


def robustify(target: str, asked: RobustifyConfig, out: str, envs: list[str] | None = None, teacher: str | None = None,
              step: int | None = None) -> Path:
    """Write the student, which is the noised copy after distillation, to the folder `out`, and return that folder. It holds a
    plain model, or a LoRA if the run trained one. `target` is the run folder, and `envs` names the environments whose prompts are
    answered (None: all). `teacher` is a folder that holds the run's deployed model after `step` (or the last step); default:
    RUN/deployed."""
    run, folder = RunFolder.open(target), Path(out).expanduser().absolute()
    if folder.exists():
        raise ConfigError(f"--out {out} exists already; give another folder")
    check_above(folder, f"--out {out}")
    transformers_logging.set_verbosity_error()
    config = read_config(run)
    source = _teacher(run, config, asked, teacher)
    teaching = require_deployed(run, source, step)
    given = check(run, config, asked, envs, source)
    facts = {"run": str(run.path), "teacher": {"folder": str(source)} | teaching._asdict(), "seed": config.seed,
             "settings": dataclasses.asdict(asked) | {"env": [loaded.name for loaded in given.chosen]}}
    work = folder.with_name(f".{folder.name}.robustify")
    _agree(work, facts)
    with alone_in(work):
        write_json(work / "facts.json", facts)
        try:
            made = make(given, work)
        except ConfigError:  # with other options nothing of it can be used again
            shutil.rmtree(work)
            raise
        publish(folder, lambda place: _write(place, given, made, facts),
                finishing(run, STUDENT, results=made.evaluation), teaching.step)
    shutil.rmtree(work, ignore_errors=True)
    if made.evaluation["deployed"]:
        show_tables(made.evaluation, {}, given.parts.environments)
    console.say(f"robustified model: {folder}")
    return folder


def _teacher(run: RunFolder, config: Config, asked: RobustifyConfig, teacher: str | None) -> Path:
    if config.routing.mode == "none" and asked.gate is None:
        raise ConfigError(f"{run.path} was not routed, so its deployed model is its policy, and a student would learn all that "
                          "it does; give --gate detector, or a run with routing")
    source = Path(teacher).expanduser().absolute() if teacher else run.deployed
    if not source.is_dir():
        where = f"--teacher {teacher}: there is no such folder" if teacher else f"{run.path} has no deployed model"
        raise ConfigError(f"{where}; write it with `{command('discard', run.path, '--out', 'DIR')}`, and give --teacher DIR")
    return source


def _agree(work: Path, facts: dict[str, Any]) -> None:
    """ConfigError if the work folder `work`, left by an earlier call, was made with other settings than those in `facts`."""
    there = read_object(work / "facts.json", {})
    if there is not None and there != facts:
        raise ConfigError(f"{work} is of an earlier robustify with other settings, which did not end; remove it, or give another "
                          "--out")


def _write(folder: Path, given: Given, made: Made, facts: dict[str, Any]) -> None:
    base = str(given.run.base) if given.run.base.exists() else given.config.model.path
    made.student.save(folder, given.parts.tokenizer, base)
    noised = {"tensors": len(made.student.trained), "numbers": sum(each.numel() for each in made.student.trained.values())}
    write_json(folder / ROBUSTIFIED, {"routed_rl": __version__, **facts, "model_hash": model_hash(made.student.model),
                                 "noised": noised, **made.record, "evaluation": made.evaluation})
