"""Turns overrides into a `Config`, with Hydra. Every error is one line that names the nearest known setting.

No `+` is needed to add a key. Settings that `routed_rl.config` declares are checked there; the sections `env.*` and `trainer.*`
may have any keys. `routed_rl.cli.space` handles overrides with several values.
"""

import dataclasses
import difflib
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from routed_rl.artifacts import data_root, resolve
from routed_rl.config import Config, MonitorConfig, from_mapping, unknown
from routed_rl.config.adapter import FASTER
from routed_rl.config.axes import AxesConfig
from routed_rl.config.checks import LONGEST_NAME, declared_types
from routed_rl.config.references import check_variables, is_reference, mapped, refuse_secrets
from routed_rl.errors import ConfigError

FREE = ("env.", "trainer.", "keep.", "model.adapter.options.", "subspace.known_prompts.", "subspace.known_answers.",
        *(f"monitor.{rule.name}.limits." for rule in dataclasses.fields(MonitorConfig)))
"""Prefixes under which any key may be added."""


def compose(overrides: list[str]) -> Config:
    """The `Config` of the default experiment with these overrides. Names, types and ranges are checked."""
    folder = data_root() / "configs"
    texts = [_checked(text, folder) for text in overrides]
    try:
        with initialize_config_dir(str(folder), job_name="routed_rl", version_base="1.3"):
            composed = hydra_compose("config", texts)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error
    config = _typed(composed)
    if config.model.adapter.trains and not any(text.lstrip("+").startswith(f"trainer.{RATE}=") for text in texts):
        _raise_rate(config.trainer)
    refuse_secrets(dataclasses.asdict(config))
    return config


RATE = "learning_rate"


def _raise_rate(trainer: dict[str, Any]) -> None:
    """Multiply the learning rate in the trainer's settings by `FASTER`, for a LoRA, because the rates in configs/ are for full
    weights."""
    if RATE in trainer:
        trainer[RATE] = float(f"{FASTER * trainer[RATE]:.12g}")


PATHS = re.compile(r"model\.(adapter\.)?path|env\.[^.]+\.(stages\.)?(path|dataset|reward|solve|flags(\.[^.]+)?)|"
                   r"subspace\.(path|weights|(plain_)?prompts|answers|pairs|target|(roles|traits|questions)_file|parts|compare_to)")
"""Pattern of the settings that name files or folders."""


def from_anywhere(overrides: list[str]) -> list[str]:
    """The same overrides with absolute paths, so that they mean the same in another working directory."""
    return [_from_anywhere(text) for text in overrides]


def _from_anywhere(text: str) -> str:
    key, equals, _ = text.partition("=")
    name = key.lstrip("+")
    if not equals or not PATHS.fullmatch(name) or (override := parse_override(text)[1]).is_sweep_override():
        return text
    value: Any = override.value()
    found = mapped(value, _absolute, name)
    bare = isinstance(found, str) and not re.search(r"[,\\]|^\s|\s$", found)  # a comma would separate the values of a sweep
    return text if found == value else f"{key}={found if bare else hydra_text(found)}"


def hydra_text(value: Any) -> str:
    """A value in the syntax that Hydra reads."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {hydra_text(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(hydra_text, value))}]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def quoted(text: str) -> str:
    """A text in double quotes, as Hydra reads it. Quotes in the text are escaped, and backslashes that stand before quotes or at
    the end of the text are doubled. All other backslashes, and line breaks, stay as they are."""
    return f'"{re.sub(BEFORE_QUOTES, lambda found: 2 * found[1] + BACKSLASH * bool(found[2]) + found[2], text)}"'


BACKSLASH = "\\"
BEFORE_QUOTES = r'(\\*)("|\Z)'
"""Pattern of the backslashes that Hydra reads as escapes: those before quotes, also before those at the end of the text."""


def _absolute(name: str, path: Any) -> Any:
    """`path`, the value of the setting `name`, as an absolute path if the setting names a file or folder, otherwise unchanged. An
    environment is `FILE.py:CLASS`, or a name that is no file; its dataset may be a name on the Hub."""
    if name == "out" and path is not None:
        return os.path.expanduser(path)  # it need not exist, and a name of the package's data means nothing here
    if not isinstance(path, str) or not PATHS.fullmatch(name) or (name == "subspace.target" and path == AxesConfig().target):
        return path
    if not name.startswith("env."):
        return resolve(path)
    if name.endswith(".dataset"):
        found = Path(resolve(path))
        saved = any((found / file).exists() for file in ("dataset_info.json", "dataset_dict.json"))
        return str(found) if found.is_file() or saved else path
    file, colon, cls = path.rpartition(":")
    return f"{resolve(file)}{colon}{cls}" if file.endswith(".py") else path


def _checked(text: str, folder: Path) -> str:
    """Check an override and return it in the form that Hydra gets. ConfigError for a mistake that can be seen before Hydra
    composes the settings."""
    if text.startswith("=") or ("=" not in text and not text.startswith("~")):
        raise ConfigError(f"{text!r} is no setting; write KEY=VALUE, such as subspace.rank=6")
    if text.startswith(("env.", "+env.", "++env.")) and "" in text.partition("=")[0].split("."):
        raise ConfigError(f"{text!r}: an environment's name and its settings' names must not be empty; write env.NAME.KEY=VALUE")
    if long := [part for part in text.partition("=")[0].split(".") if len(part) > LONGEST_NAME]:
        raise ConfigError(f"{long[0][:20]}... is a name of {len(long[0])} characters; take at most {LONGEST_NAME}")
    text, override = parse_override(text)
    if override.is_sweep_override():
        raise ConfigError(f"{text!r} gives several values; give one, write a list as KEY=[A,B], or "
                          "try each with `routed-rl sweep`")
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
        if not key.strip("+~") or value[:1] in ("[", "{", "'", '"'):
            raise ConfigError(f"cannot read {text!r} ({_one_line(error)}); quote a value with special characters twice: "
                              f"'{key}=\"VALUE\"'") from error
    try:
        return f"{key}={quoted(value)}", parser.parse_override(f"{key}={quoted(value)}")
    except HydraException as error:
        raise ConfigError(f"cannot read {text!r} ({_one_line(error)}); write KEY=VALUE") from error


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


def _typed(composed: DictConfig) -> Config:
    """`composed` as a `Config`: every value has the type that its field declares, and paths relative to the current folder become
    absolute."""
    plain: Any = None
    written: Any = OmegaConf.to_container(composed, resolve=False)
    try:
        mapped(written, check_variables)
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        typed: Any = OmegaConf.to_container(OmegaConf.merge(_structure(), plain))
    except ConfigKeyError as error:
        from_mapping(plain)  # raises with the nearest known setting
        raise ConfigError(_one_line(error)) from error
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "")
        declared = declared_types(Config).get(key)
        if not key or not isinstance(error, ValidationError):
            raise ConfigError(f"{key}: {_one_line(error)}" if key else _one_line(error)) from error
        wanted = f"be {declared}" if declared is not None else f"hold settings, such as {key}.NAME=VALUE"
        raise ConfigError(f"{key} must {wanted}, got {OmegaConf.select(composed, key)!r}") from error
    texts: dict[str, Any] = {}
    mapped(written, texts.__setitem__)
    typed["env"] = _with_references(written["env"], typed["env"], texts)
    typed["trainer"] |= {key: _with_references(written["trainer"][key], value, texts) for key, value in typed["trainer"].items()
                         if key not in AT_ONCE and not isinstance(value, (int, float))}
    subspace, model = typed["subspace"], typed["model"]["path"]
    for kind in ("prompts", "answers"):
        subspace[kind] = subspace[kind] or subspace[f"known_{kind}"].get(model)
    return from_mapping(mapped(typed, _absolute))


@functools.cache
def _structure() -> DictConfig:
    """Every setting with its declared type; the user's settings are merged into it. It is made once, because making it takes a
    third of the time of `compose`."""
    return OmegaConf.structured(Config)


AT_ONCE = ("path", "probe", "algorithm", "optim", "report_to")
"""Settings of environments and of the trainer that are not secret and are read in many places, so references in them to
environment variables are resolved at once."""


def _with_references(written: Any, found: Any, texts: dict[str, Any]) -> Any:
    """`found`, the resolved form of `written`, in which references to environment variables are put back. `${another.setting}` is
    replaced by the reference if that setting's text in `texts` is one."""
    if isinstance(written, dict):
        return {key: inner if key in AT_ONCE else _with_references(written[key], inner, texts) for key, inner in found.items()}
    if isinstance(written, list):
        return [_with_references(*pair, texts) for pair in zip(written, found, strict=True)]
    text = re.sub(r"\$\{([\w.]+)\}", lambda name: str(texts.get(name[1], name[0])), written) if isinstance(written, str) else None
    return text if is_reference(text) else found


def _one_line(error: Exception) -> str:
    """The first line of a Hydra or OmegaConf message; the rest repeats the place of the error."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__).rstrip(".")
