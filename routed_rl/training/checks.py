"""Checks the settings of `trainer:` by the tables in `fields`: their names, types and values, and whether they have an effect."""

import dataclasses
import enum
import importlib.metadata
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from routed_rl.config import Config, closest
from routed_rl.config.references import SECRET, masked, resolved
from routed_rl.errors import ConfigError
from routed_rl.shapes import fits
from routed_rl.tracking import split_report_to
from routed_rl.training.fields import ELSEWHERE, FIXED, GONE, NEEDS, ORDERED, STAYS, VALUES
from routed_rl.training.trainers import TRAINERS, Algorithm

RULES: dict[str, Callable[[Any], bool]] = {
    "at least 1": lambda value: value >= 1, "at least 2": lambda value: value >= 2,
    "above 0": lambda value: value > 0, "at least 0": lambda value: value >= 0,
    "above 0 and at most 1": lambda value: 0 < value <= 1, "from 0 to 1": lambda value: 0 <= value <= 1,
    "from 0 to below 1": lambda value: 0 <= value < 1,
    "a whole number from 1, or a share of all steps": lambda value: 0 < value < 1 or (value >= 1 and value == int(value)),
    "a whole number from 0, or a share of all steps": lambda value: 0 <= value < 1 or (value >= 1 and value == int(value)),
    "two numbers, the smaller one first": lambda value: isinstance(value, (list, tuple)) and len(value) == 2
    and all(_number(each) for each in value) and value[0] < value[1],
}
"""The rules that `VALUES` names, as functions of a field's value. An entry of `VALUES` whose rule is not here lists the allowed
words."""
LARGEST = 2**31
LEAN = "lean"
"""The name of the setting `trainer.lean`. If it is true, an update does not compute anything that cannot change the gradient."""
OWN = {"algorithm", LEAN}
"""The settings of `trainer:` that are not fields of TRL's arguments."""


def algorithm_name(trainer: dict[str, Any]) -> str:
    """Return the value of `trainer.algorithm`; grpo if it is not set, as in runs that are older than the setting."""
    return trainer.get("algorithm", "grpo")


def algorithm(trainer: dict[str, Any]) -> Algorithm:
    """Return the entry of `TRAINERS` that `trainer.algorithm` names. ConfigError, which lists the known names, for any other
    name."""
    if (name := algorithm_name(trainer)) not in TRAINERS:
        raise ConfigError(f"trainer.algorithm={name} is not known; choose from {', '.join(TRAINERS)}")
    return TRAINERS[name]


def settings(trainer: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of `trainer:` that are fields of the algorithm's arguments: all except those in `OWN`. A reference to
    an environment variable is replaced by the variable's value. The reference of a secret, such as `hub_token`, is kept as it
    stands, because checkpoints store the arguments."""
    return {key: value if SECRET.fullmatch(key) else resolved(value, f"trainer.{key}")
            for key, value in trainer.items() if key not in OWN}


def fields(trainer: dict[str, Any]) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of the algorithm's arguments by name."""
    return {field.name: field for field in dataclasses.fields(algorithm(trainer).arguments)}


def default(trainer: dict[str, Any], key: str) -> Any:
    """Return the value that the field `key` of the algorithm's arguments has if `trainer:` does not set it."""
    field = fields(trainer)[key]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def check_trainer(trainer: dict[str, Any]) -> None:
    """ConfigError for an unknown setting in `trainer:` (the message names the closest known one), for an impossible value, and
    for a field that must keep its default (the message says why)."""
    hints = typing.get_type_hints(algorithm(trainer).arguments)
    if not isinstance(trainer.get(LEAN, True), bool):
        raise ConfigError(f"trainer.{LEAN} must be true or false, got {trainer[LEAN]!r}")
    for key, value in settings(trainer).items():
        if key == "peft_config" or key.startswith("lora"):
            raise ConfigError(f"trainer.{key} is not set here: for a LoRA set model.adapter=lora, and model.adapter.r=RANK")
        if key not in (known := fields(trainer)):
            raise ConfigError(_unknown(key, [*known], trainer))
        if way := _row(ELSEWHERE, key):
            raise ConfigError(f"trainer.{key} is not set here: {way}")
        _check_type(key, value, hints[key])
        if (why := _row(STAYS, key)) and value != default(trainer, key):
            raise ConfigError(masked(f"trainer.{key}={value} is not supported: {why}; leave it out"))
        if (rule := _row(VALUES, key)) and value not in (None, "auto") and not keeps(value, rule):
            raise ConfigError(masked(f"trainer.{key} must be {rule}, got {value}"))
        if key == "report_to":
            split_report_to(value)
    for pair in ORDERED:
        low, high = (trainer.get(key, default(trainer, key) if key in hints else None) for key in pair)
        if low is not None and high is not None and low > high:
            raise ConfigError(f"trainer.{pair[1]}={high} is below trainer.{pair[0]}={low}; raise the first or lower the second")


def keeps(value: Any, rule: str) -> bool:
    """Whether a field's value satisfies `rule`, a key of `VALUES`."""
    if rule not in RULES:
        return value in re.split(", | or ", rule)
    return (_number(value) or isinstance(value, (list, tuple))) and RULES[rule](value)


def check_needs(config: Config) -> None:
    """ConfigError for a setting that has no effect because of another setting, by the table `NEEDS`."""
    trainer = {"algorithm": algorithm_name(config.trainer)} | settings(config.trainer)
    others = {"rollout.engine": config.rollout.engine, "launch.strategy": config.launch.strategy}
    for names, condition, wanted in NEEDS:
        name = condition.removeprefix("trainer.")
        if condition not in others and name not in fields(trainer):
            continue
        found = others[condition] if condition in others else trainer.get(name, default(trainer, name))
        if set(found if isinstance(found, list) else [found]) & set(wanted):
            continue
        for key in names.split():
            if key in trainer and trainer[key] != default(trainer, key):
                raise ConfigError(f"trainer.{key}={trainer[key]} does nothing with {condition}={found}; leave it out, or set "
                                  f"{condition} to {' or '.join(map(str, wanted))}")


def fixed(config: Config) -> dict[str, Any]:
    """Return the settings that `resume` and `rollback` cannot change, as values by name. Numbers of completions are sums over all
    processes, so that the number of processes may change."""
    trainer = {"algorithm": algorithm_name(config.trainer)} | settings(config.trainer)

    def value(key: str) -> Any:
        return trainer.get(key, default(trainer, key))

    def count(key: str) -> int:
        return found if isinstance(found := value(key), int) else 0  # a value that is no number is refused with the settings

    rows, accumulated = count("per_device_train_batch_size") * config.launch.world, count("gradient_accumulation_steps")
    made = count("generation_batch_size") or rows * (count("steps_per_generation") or accumulated)
    alike = [name for name in FIXED.split() if name not in ("generation_batch_size", "steps_per_generation")]
    return {"trainer.algorithm": algorithm_name(trainer), **{f"trainer.{name}": value(name) for name in alike},
            "the completions of a step (trainer.per_device_train_batch_size x trainer.gradient_accumulation_steps x processes)":
            rows * accumulated,
            "the completions made at a time (trainer.generation_batch_size)": made}


def _row(table: dict[str, str], key: str) -> str | None:
    return next((said for said, names in table.items() if key in names.split()), None)


def _unknown(key: str, known: list[str], trainer: dict[str, Any]) -> str:
    """The message for an unknown setting: which algorithms have it, what replaced it, or which known setting has a similar
    name."""
    if having := [name for name in TRAINERS if key in fields({"algorithm": name})]:
        return (f"trainer.{key} is a setting of {' and '.join(having)}, and trainer.algorithm is "
                f"{algorithm_name(trainer)}; leave it out, or set trainer={having[0]}")
    if key in GONE:
        return f"trainer.{key} is no setting of TRL {importlib.metadata.version('trl')}: {GONE[key]}"
    near = closest(key, [*known, *OWN])
    return f"unknown setting trainer.{key}; " + (f"did you mean trainer.{near}?" if near else
                                                 f"it is no field of TRL {importlib.metadata.version('trl')}'s "
                                                 f"{algorithm(trainer).arguments.__name__}")


def _number(value: Any) -> bool:
    """Whether a value is a number whose absolute value is below `LARGEST`. A bool, nan or infinity is not."""
    return not isinstance(value, bool) and isinstance(value, (int, float)) and -LARGEST < value < LARGEST


def _check_type(key: str, value: Any, hint: Any) -> None:
    """ConfigError if `value` does not fit `hint`, the type hint of the field `key`. Only fields that take plain values, words or
    a mapping are checked here; TRL checks all others."""
    kinds = set(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else {hint}
    kinds = {type(typing.get_args(kind)[0]) if typing.get_origin(kind) is typing.Literal else kind for kind in kinds}
    outer = {typing.get_origin(kind) or kind for kind in kinds}
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not _number(value):
        raise ConfigError(f"trainer.{key} must be a finite number below 2**31, got {value}")
    for kind in outer:
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and value not in (words := [str(each.value) for each in kind]):
            raise ConfigError(f"trainer.{key}={value} is not known; choose from {', '.join(words)}")
    if dict in outer:
        fine, wanted = value is None or isinstance(value, dict) or str(value).startswith("{"), "a mapping such as {key: value}"
    elif outer >= {list, str}:
        fine, wanted = fits(value, str | list[str] | None), "a word or a list of words"
    elif outer <= {bool, int, float, str, types.NoneType}:
        # TRL's hints are wider than its code.
        empty = value is None and key in ("num_generations", "max_completion_length")
        fine = any(fits(value, kind) for kind in kinds) and not empty
        wanted = " or ".join(sorted("null" if kind is types.NoneType else kind.__name__ for kind in kinds))
    else:
        return
    if not fine:
        raise ConfigError(f"trainer.{key} must be {wanted}, got {masked(repr(value))}")
