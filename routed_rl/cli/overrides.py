"""Checks overrides, the words `KEY=VALUE` of a command line, and turns them into the form that Hydra reads. Every error is one
line that names the nearest known setting."""

import dataclasses
import difflib
import json
import re
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from routed_rl.config import Config, MonitorConfig, unknown
from routed_rl.config.checks import LONGEST_NAME, declared_types
from routed_rl.errors import ConfigError

NAME = re.compile(r"[A-Za-z_][\w$/@:-]*|[0-9]+", re.ASCII)
"""Pattern of a part of a setting's name that Hydra's grammar can read, perhaps with a package (`@`) behind it."""
FREE = ("env.", "trainer.", "keep.", "model.adapter.options.", "subspace.known_prompts.", "subspace.known_answers.",
        *(f"monitor.{rule.name}.limits." for rule in dataclasses.fields(MonitorConfig)))
"""Prefixes under which any key may be added."""


def checked(text: str, folder: Path) -> str:
    """Check the override `text` and return it in the form that Hydra gets. `folder` is the folder configs/. ConfigError for a
    mistake that can be seen before Hydra composes the settings."""
    if text.startswith("=") or ("=" not in text and not text.startswith("~")):
        raise ConfigError(f"{text!r} is no setting; write KEY=VALUE, such as subspace.rank=6")
    if text.startswith(("env.", "+env.", "++env.")):
        if "" in (parts := (key := text.partition("=")[0]).split(".")):
            raise ConfigError(f"{text!r}: an environment's name and its settings' names must not be empty; write "
                              "env.NAME.KEY=VALUE")
        _check_letters(key, [part for part in parts if set(part) & set("/@:")])
    if long := [part for part in text.partition("=")[0].split(".") if len(part) > LONGEST_NAME]:
        raise ConfigError(f"{long[0][:20]}... is a name of {len(long[0])} characters; take at most {LONGEST_NAME}")
    text, override = parse_override(text)
    if override.is_sweep_override():
        raise ConfigError(f"{text!r} gives several values; give one, write a list as KEY=[A,B], quote a text "
                          "with commas twice ('KEY=\"A,B\"'), or try each with `routed-rl sweep`")
    if override.type == OverrideType.DEL:
        return text
    group = override.key_or_group.replace(".", "/")  # a group within a group is named like its setting
    if (folder / group).is_dir():
        _check_choice(override, folder / group, group.replace("/", "."))
        return text.replace(override.key_or_group, group, 1)
    _check_name(override.key_or_group)
    # `++` sets the key whether or not a file of configs/ mentions it; `routed_rl.config` knows whether it exists.
    return f"++{text.lstrip('+')}"


def parse_override(text: str) -> tuple[str, Override]:
    """Parse one override by Hydra's grammar. Returns its text in that grammar and the parsed form. A bare value outside that
    grammar, such as a path with `=` or `(`, is taken literally. ConfigError if the text cannot be read."""
    parser = OverridesParser.create()
    try:
        return text, parser.parse_override(text)
    except HydraException as error:
        key, _, value = text.partition("=")
        _check_letters(key, [part for part in key.lstrip("+~").split(".") if not NAME.fullmatch(part)])
        if not key.strip("+~") or value[:1] in ("[", "{", "'", '"'):
            raise ConfigError(f"cannot read {text!r} ({one_line(error)}); quote a value with special characters twice: "
                              f"'{key}=\"VALUE\"'") from error
    try:
        return f"{key}={quoted(value)}", parser.parse_override(f"{key}={quoted(value)}")
    except HydraException as error:
        raise ConfigError(f"cannot read {text!r} ({one_line(error)}); write KEY=VALUE") from error


def _check_letters(key: str, wrong: list[str]) -> None:
    """Raise ConfigError if `wrong`, the parts of `key` (all before the `=` of an override) that hold a sign which Hydra cannot
    read there, is not empty. In a setting that exists, only names that a user chose, such as those of environments, can hold
    one."""
    if key.strip("+~") and wrong:
        raise ConfigError(f"{key}: {wrong[0]!r} cannot be the name of a setting or an environment; take letters from a to z, "
                          "digits, _ and -, and begin with a letter")


def _check_choice(override: Override, group: Path, name: str) -> None:
    choices = sorted(path.stem for path in group.glob("*.yaml"))
    value: Any = override.value()
    for choice in value if isinstance(value, list) else [value]:
        if choice not in choices:
            close = difflib.get_close_matches(str(choice), choices, n=1)
            single = f"; a single setting is written {name}.NAME=VALUE" if name in declared_types(Config) else ""
            guess = f"did you mean {name}={close[0]}? " if close else ""
            raise ConfigError(f"{override.input_line} is not known; {guess}choices: {', '.join(choices)}{single}")


def _check_name(key: str) -> None:
    """Raise ConfigError for a setting that does not exist. The message suggests a setting of the same name in another section, or
    else the nearest name."""
    known = declared_types(Config)
    if key in known or key.startswith(FREE):
        return
    same = [name for name in [*known, *COMMON] if name.rpartition(".")[2] == key.rpartition(".")[2]]
    if len(same) > 2 and "." in key:  # the same setting of many sections, such as the limits of the monitor's rules
        same = difflib.get_close_matches(key, same, n=1) or same
    if same:
        raise ConfigError(f"unknown setting {key}; did you mean {' or '.join(same)}?")
    section = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    if section and siblings:
        raise ConfigError(unknown(key, siblings))
    close = difflib.get_close_matches(key, known, cutoff=0.6)
    raise ConfigError(unknown(key, close or [name for name in known if "." not in name]))


COMMON = tuple(f"trainer.{name}" for name in (
    "max_steps", "learning_rate", "per_device_train_batch_size", "num_generations", "max_completion_length", "temperature",
    "beta", "save_steps", "report_to", "bf16", "loss_type"))
"""Settings of TRL that are often used. They are listed only to suggest the nearest one for a misspelling; the trainer checks all
of its settings."""


def hydra_text(value: Any) -> str:
    """A value in the syntax that Hydra reads."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {hydra_text(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(hydra_text, value))}]"
    return quoted(value) if isinstance(value, str) else repr(value) if isinstance(value, float) else json.dumps(value)


def quoted(text: str) -> str:
    """A text in double quotes, as Hydra reads it. Quotes in the text are escaped, and backslashes that stand before quotes or at
    the end of the text are doubled. All other backslashes, and line breaks, stay as they are."""
    return f'"{re.sub(BEFORE_QUOTES, lambda found: 2 * found[1] + BACKSLASH * bool(found[2]) + found[2], text)}"'


BACKSLASH = "\\"
BEFORE_QUOTES = r'(\\*)("|\Z)'
"""Pattern of the backslashes that Hydra reads as escapes: those before quotes, also before those at the end of the text."""


def one_line(error: Exception) -> str:
    """The first line of a Hydra or OmegaConf message; the rest repeats the place of the error."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__).rstrip(".")
