"""What every section shares: checks of values, and names that are not known."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from routed_rl.errors import ConfigError


def section(setting: dataclasses.Field[Any]) -> type | None:
    """The dataclass of a setting that is a section of its own; None for a plain one."""
    inner = getattr(setting.default_factory, "func", setting.default_factory)
    return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None


def unknown(key: str, known: list[str]) -> str:
    """The message for an unknown setting: what is close, or what there is."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown setting {key}; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}")


def check_known(name: str, values: list[str], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise ConfigError(f"{name}={value} is not known; choose from {', '.join(known)}")


def check_at_least(prefix: str, config: Any, floors: dict[str, float]) -> None:
    for key, floor in floors.items():
        value = getattr(config, key)
        if not isinstance(value, (int, float)) or value < floor:
            raise ConfigError(f"{prefix}.{key} must be a number >= {floor}, got {value}")
