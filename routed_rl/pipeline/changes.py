"""Refuses settings that a run cannot change when it continues."""

import dataclasses

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.config.checks import first_difference
from routed_rl.errors import ConfigError, command
from routed_rl.training.checks import fixed


def refuse_changes(was: Config, wanted: Config, sections: tuple[str, ...], verb: str) -> None:
    """Raise ConfigError if the config `wanted` differs from `was` in a setting of the trainer that cannot change, or in one of
    the `sections`. The message names the first difference, and the `verb` that cannot make it."""
    old, new = dataclasses.asdict(was), dataclasses.asdict(wanted)
    found = [first_difference(fixed(was), fixed(wanted)), *(first_difference(old[name], new[name], name) for name in sections)]
    if difference := next(filter(None, found), None):
        raise ConfigError(f"{verb} cannot change {difference}; start a new run with it")


def check_go_on(run: RunFolder, overrides: list[str]) -> None:
    """Raise ConfigError if the overrides of `resume` name another folder, because a resumed run continues in its own folder."""
    if out := next((text for text in overrides if text.lstrip("+").startswith("out=")), None):
        raise ConfigError(f"resume goes on in {run.path}, so {out} does nothing; leave it out, or begin a new run at a "
                          f"checkpoint: {command('rollback', run.path, '--step', 'N', out)}")


def check_steps(run: RunFolder, wanted: Config) -> None:
    """Raise ConfigError if the run has trained more steps than `wanted` asks for."""
    most, done = wanted.trainer.get("max_steps", 0), max(run.steps(), default=0)
    if isinstance(most, int) and most < done:  # what is no number is refused with the settings
        raise ConfigError(f"trainer.max_steps={most} is less than the {done} steps that {run.path} has trained; set it to {done} "
                          f"or more, or go back: {command('rollback', run.path, '--step', 'N')}")
