"""Every setting with its type, default and meaning, read from the dataclasses of `routed_rl.config` and the strings below their
fields. Not covered: the free sections `trainer` (TRL's own fields) and `env` (an environment's own settings)."""

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from routed_rl import console
from routed_rl.config import Config, closest, section
from routed_rl.config.checks import declared_type
from routed_rl.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    name: str
    """The dotted name, as on a command line."""
    type: str
    default: str
    """The default, as a command line would set it."""
    meaning: str

    @property
    def section(self) -> str:
        """The dotted name of the section of the setting; empty for a setting of the run itself."""
        return self.name.rpartition(".")[0]


def all_settings(cls: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of the dataclass `cls` in the order of its fields. `prefix` stands before each name. The settings of a
    section come at the place of the section."""
    meanings = _meanings(cls)
    for field in dataclasses.fields(cls):
        name = f"{prefix}{field.name}"
        if (inner := section(field)) is not None:
            changed = getattr(field.default_factory, "keywords", {})
            for each in all_settings(inner, f"{name}."):
                own = each.name.rpartition(".")[2]
                yield dataclasses.replace(each, default=_written(changed[own])) if own in changed else each
        else:
            yield Setting(name, declared_type(field).replace("Any", "any"), _default(field), meanings.get(field.name, ""))


def sections(cls: type = Config, prefix: str = "") -> dict[str, str]:
    """Maps the dotted name of each section in the dataclass `cls` to its meaning. `prefix` stands before each name."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        if (inner := section(field)) is not None:
            found[f"{prefix}{field.name}"] = _meanings(cls).get(field.name, "")
            found |= sections(inner, f"{prefix}{field.name}.")
    return found


def show(word: str | None) -> None:
    """Print all settings, or, if `word` is given, the settings in whose name or meaning a word begins with it, and all settings
    of sections in whose name or meaning a word begins with it. ConfigError if there are none."""
    known, about = list(all_settings()), sections()
    pattern = re.compile(rf"(?<![a-z]){re.escape(word or '')}", re.IGNORECASE)
    wanted = {name for name, meaning in about.items() if pattern.search(f"{name} {meaning}")}
    found = [each for each in known if each.section in wanted or pattern.search(f"{each.name} {each.meaning}")]
    if not found:
        near = closest(str(word), [part for each in known for part in [each.name, *each.name.split(".")]], 0.6)
        raise ConfigError(f"settings {word}: no setting's name or meaning has this word; "
                          f"{f'did you mean {near}?' if near else '`routed-rl settings` lists them all'}")
    shown = ""
    for each in found:
        if each.section != shown and each.section:
            console.say(f"[{each.section}] {about[each.section]}")
        shown = each.section
        console.say(f"{each.name}={each.default}  ({each.type})\n    {each.meaning}")


def _default(field: Any) -> str:
    return _written(field.default if field.default is not dataclasses.MISSING else field.default_factory())


def _written(value: Any) -> str:
    """A value in the syntax of a command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(inner)}' for key, inner in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@cache
def _meanings(cls: type) -> dict[str, str]:
    """For each field of a dataclass, the string below it as one line. A field that is inherited has the string of the class that
    declares it."""
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    found = dict[str, str]()
    for base in filter(dataclasses.is_dataclass, cls.__bases__):
        found |= _meanings(base)
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr) \
                and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found
