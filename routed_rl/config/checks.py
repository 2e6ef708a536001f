"""Checks of values, and messages for unknown names, which all sections share."""

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Collection
from typing import Any

from routed_rl.errors import ConfigError
from routed_rl.shapes import fits

LONGEST_NAME = 100
NO_NUMBER = re.compile(r"(?i)[+-]?\.(inf|nan)")
"""Pattern of the texts by which YAML writes numbers that are infinite or not a number."""


def section(setting: dataclasses.Field[Any]) -> type | None:
    """The dataclass of `setting` if it is a section, which has settings of its own; None for a plain setting."""
    inner = getattr(setting.default_factory, "func", setting.default_factory)
    return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None


def declared_type(setting: dataclasses.Field[Any]) -> str:
    """The type of a setting as text for users."""
    written = setting.type.__name__ if isinstance(setting.type, type) else str(setting.type)
    return written.replace("typing.", "").replace(" | None", " or null")


def declared_types(cls: type, prefix: str = "") -> dict[str, str]:
    """Maps the dotted name of every setting below the section `cls` to its type, as text for users. Sections count as settings,
    too. `prefix` stands before each name."""
    found: dict[str, str] = {}
    for each in dataclasses.fields(cls):
        found[f"{prefix}{each.name}"] = declared_type(each)
        if (inner := section(each)) is not None:
            found |= declared_types(inner, f"{prefix}{each.name}.")
    return found


def unknown(key: str, known: list[str]) -> str:
    """The message for an unknown setting `key`. It names the closest of the `known` settings, or else all of them. If all known
    settings are in the section of `key`, only the names inside the section are compared."""
    section = key[:key.rfind(".") + 1]
    shared = section if all(name.startswith(section) for name in known) else ""
    near = closest(key.removeprefix(shared), [name.removeprefix(shared) for name in known], 0.6)
    return f"unknown setting {key}; " + (f"did you mean {shared}{near}?" if near else f"known: {', '.join(sorted(known))}")


def closest(key: str, known: list[str], cutoff: float = 0.8) -> str | None:
    """The known name of which `key` is probably a misspelling. None if the similarity of every name (0 to 1, as `difflib`
    measures it) is below `cutoff`."""
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=cutoff)), None)


def check_known(name: str, values: list[str], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise ConfigError(f"{name}={value} is not known; choose from {', '.join(known)}")


def check_types(prefix: str, config: Any) -> None:
    """ConfigError if a field of the dataclass `config` has another type than it declares. This is for settings that a script
    makes; `from_mapping` checks the types of settings from files and the command line."""
    hints = typing.get_type_hints(type(config))
    for each in dataclasses.fields(config):
        value, inner = getattr(config, each.name), section(each)
        if inner is not None and not isinstance(value, inner):
            raise ConfigError(f"{prefix}.{each.name} must be {inner.__name__}(...), got {value!r:.60}")
        if inner is None and not fits(value, hints[each.name]):
            raise ConfigError(f"{prefix}.{each.name} must be {declared_type(each)}, got {value!r:.60}")


def check_at_least(prefix: str, config: Any, floors: dict[str, float]) -> None:
    for key, floor in floors.items():
        value = getattr(config, key)
        check_finite(f"{prefix}.{key}", value)
        if not isinstance(value, (int, float)) or value < floor:
            raise ConfigError(f"{prefix}.{key} must be a number >= {floor}, got {value}")


def check_shares(prefix: str, config: Any, *names: str) -> None:
    """Raise ConfigError if one of these settings of the section `config`, which are shares, does not lie in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        check_finite(f"{prefix}.{name}", value)
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ConfigError(f"{prefix}.{name} must lie in [0, 1], got {value}; it is a share")


def check_finite(key: str, value: Any) -> None:
    """Raise ConfigError if `value`, or a number inside it if it is a section, mapping or list, is nan or infinite. The texts .inf
    and .nan count as such numbers, because a user who types them on the command line means what they mean in YAML. `key` is the
    name of `value` for the message."""
    if dataclasses.is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, (dict, list, tuple)):
        for inner, each in value.items() if isinstance(value, dict) else enumerate(value):
            check_finite(f"{key}.{inner}".lstrip("."), each)
    elif (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, str) and NO_NUMBER.fullmatch(value)):
        raise ConfigError(f"{key} must be a finite number, got {value}")


def check_options(options: Any, floors: dict[str, float]) -> None:
    """Check `options`, a dataclass with the options of a command, as `check_at_least` and `check_finite` do. Messages name an
    option as the user types it, such as --batch-size."""
    typed = {f"--{each.name.replace('_', '-')}": getattr(options, each.name) for each in dataclasses.fields(options)}
    check_finite("", typed)
    for name, floor in floors.items():
        option = f"--{name.replace('_', '-')}"
        if typed[option] < floor:
            raise ConfigError(f"{option} must be a number >= {floor}, got {typed[option]}")


AUTO = "auto"


def check_share(label: str, value: Any) -> float | str:
    """Check and return `value` as the share of an environment's part that is kept: `AUTO`, or a number from 0 to 1. `label` is
    the name of the setting or option, for the message."""
    try:
        if value == AUTO:
            return AUTO
        if isinstance(value, bool) or not 0 <= (share := float(value)) <= 1:
            raise ValueError
        return share
    except (TypeError, ValueError):
        raise ConfigError(f"{label}={value} is no share of a part; give a number from 0 to 1, or {AUTO}") from None


def name_problem(name: object, taken: Collection[str]) -> str:
    """The reason why `name` cannot be a component of a metric's name (components are divided by "/" and "."), or empty text if it
    can. `taken` has the names that are not free."""
    if not isinstance(name, str):
        return "is no text"
    if not 0 < len(name) <= LONGEST_NAME:
        return f"is empty or longer than {LONGEST_NAME} characters"
    if wrong := [letter for letter in name if letter in "/." or letter.isspace() or not letter.isprintable()]:
        return f"has the character {wrong[0]!r}"
    return "is a name that routed_rl uses itself" if name in taken else ""


def first_difference(was: Any, now: Any, name: str = "") -> str | None:
    """The first difference between the nested settings `was` and `now`, as `KEY: OLD -> NEW`. None if they are equal. `name` is
    the dotted name of both."""
    if isinstance(was, dict) and isinstance(now, dict):
        each = (first_difference(was.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in dict.fromkeys([*was, *now]))
        return next(filter(None, each), None)
    return None if was == now else f"{name}: {was} -> {now}"


def is_drawn(settings: Any) -> bool:
    """Whether the mixture ever draws tasks of an environment with these settings: false for a weight that is always 0. A weight
    that cannot be read counts as above 0; the code that reads weights refuses it."""
    weight = settings.get("weight", 1.0) if isinstance(settings, dict) else 1.0
    rows = weight if isinstance(weight, (list, tuple)) and weight else [[0, weight]]
    return not all(isinstance(row, (list, tuple)) and row and row[-1] == 0 for row in rows)
