"""The option `--config FILE.yaml`: reads an experiment from a user's file and translates it into overrides.

The file is composed like the files that `experiment=` names: its key `defaults` chooses groups, and all other keys are settings.
It may lie anywhere, and paths in it are relative to its folder, except `out`. A section without any setting, which YAML reads as
null, sets nothing.
"""

import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from routed_rl.cli.overrides import hydra_text
from routed_rl.cli.paths import from_anywhere
from routed_rl.config import Config
from routed_rl.config.checks import declared_types
from routed_rl.errors import ConfigError

PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
WORDS = ("true", "false", "null", "nan", "inf")


def overrides_of(file: str) -> list[str]:
    """Translate a settings file into overrides, with absolute paths. ConfigError if the file cannot be read."""
    path = Path(file)
    if not path.is_file():
        wrong = "it is a folder" if path.is_dir() else "there is no such file"
        raise ConfigError(f"--config {file}: {wrong}; `routed-rl new experiment NAME` writes a file to begin with")
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, ValueError, KeyError) as error:  # `!!int x` is a ValueError, `!!bool x` a KeyError
        raise ConfigError(f"--config {file} is no YAML: {' '.join(str(error).split())[:200]}") from error
    except RecursionError as error:
        raise ConfigError(f"--config {file}: a value has itself as a part, or is nested too deeply; see its anchors") from error
    except OSError as error:  # a number or a date, or a file that may not be read
        raise ConfigError(f"--config {file} must hold settings as KEY: VALUE, and it cannot be read as such: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--config {file} must hold settings as KEY: VALUE, got {type(found).__name__}")
    defaults = found.pop("defaults", None)
    groups = list(_groups([] if defaults is None else defaults, file))
    with chdir(path.parent):
        return from_anywhere([*groups, *_settings(found)])


def _groups(defaults: Any, file: str) -> Iterator[str]:
    """The choices of groups in `defaults`, as overrides. Both `- model: smollm2` and Hydra's `- override /model: smollm2` are
    understood."""
    if not isinstance(defaults, list):
        raise ConfigError(f"--config {file}: defaults must be a list such as [model: NAME, env: empty], got {defaults!r}")
    for each in defaults:
        if each == "_self_":
            continue
        if not isinstance(each, dict) or len(each) != 1:
            raise ConfigError(f"--config {file}: defaults has {each!r}; write GROUP: CHOICE, such as env: empty")
        ((group, choice),) = each.items()
        yield f"{str(group).removeprefix('override').strip().lstrip('/').replace('/', '.')}={choice}"


def _settings(found: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in found.items():
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{prefix}{key}.")
        elif value is not None or not _is_section(f"{prefix}{key}"):
            yield f"{prefix}{key}={value if _is_bare(value) else hydra_text(value)}"


def _is_section(name: str) -> bool:
    """Whether `name` is that of a section. If all settings of a section are comments, YAML reads null there."""
    known = declared_types(Config)
    return any(each.startswith(f"{name}.") for each in known) or str(known.get(name, "")).startswith("dict")


def _is_bare(value: Any) -> bool:
    """Whether a value is a plain word, which is written without quotes. The choice from a config group of Hydra must be
    written without quotes."""
    return isinstance(value, str) and PLAIN.fullmatch(value) is not None and value.lower() not in WORDS
