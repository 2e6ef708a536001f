"""Refuses settings that a run cannot change when it continues."""

import dataclasses

from routed_rl.config import Config
from routed_rl.config.checks import first_difference
from routed_rl.errors import ConfigError
from routed_rl.training.checks import fixed


def refuse_changes(was: Config, wanted: Config, sections: tuple[str, ...], verb: str) -> None:
    """ConfigError for the first difference in the trainer's fixed settings or in the given sections of the config."""
    old, new = dataclasses.asdict(was), dataclasses.asdict(wanted)
    found = [first_difference(fixed(was), fixed(wanted)), *(first_difference(old[name], new[name], name) for name in sections)]
    if difference := next(filter(None, found), None):
        raise ConfigError(f"{verb} cannot change {difference}; start a new run with it")
