"""Settings that stand for environment variables, and secrets: records have the reference `${oc.env:NAME}`, never its value.

Not covered: what a plug-in prints or writes itself, and the list of processes.
"""

import os
import re
from collections.abc import Callable
from typing import Any

from routed_rl.errors import ConfigError

SECRET = re.compile(r"(?i)(?!(?:pad|eos|bos|unk|sep|cls|mask|stop|start|end)_token$)(?:.*_)?(?:token|password|passwd|passphrase|"
                    r"secret|credentials?|authorization|(?:api|access|secret|private|auth|hub|openai|anthropic)_?key)")
"""Names of settings whose values are secrets, special tokens of a tokenizer not among them."""
RANDOM = re.compile(r"(?=.*\d)\S{8,}|\S{24,}")
"""The value of any `..._key` that is one: `answer_key=name` names something, `my_key=f81d4fae` opens something."""
PASSWORD = re.compile(r"://[^/\s:@]*:(?!\$\{)[^/\s@]+@")
MASK, SHORTEST = "***", 4
"""What is shown for a secret of at least so many characters; a shorter one would be found in plain words."""
LATER = ("env", "trainer")
"""Sections whose references are followed when a setting is used, so that they stand in every record."""
_known: set[str] = set()


def mapped(value: Any, change: Callable[[str, Any], Any], name: str = "") -> Any:
    """Nested mappings and lists with `change(dotted name, value)` for each plain value; tuples become lists."""
    if isinstance(value, dict):
        return {key: mapped(inner, change, f"{name}.{key}".lstrip(".")) for key, inner in value.items()}
    return [mapped(inner, change, name) for inner in value] if isinstance(value, (list, tuple)) else change(name, value)


def is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value and "oc.env" in value


def resolved(value: Any, name: str = "") -> Any:
    """`value` with what its references stand for; ConfigError where a variable is missing."""
    return mapped(value, _resolved, name)


def resolved_at_once(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, those of `LATER` as they are."""
    return {key: value if key in LATER else resolved(value, key) for key, value in settings.items()}


def _resolved(name: str, value: Any) -> Any:
    if not is_reference(value):
        return value
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    check_variables(name, value)
    try:
        found: Any = OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)
    except OmegaConfBaseException:
        raise ConfigError(f"{name}={value} cannot be read; write ${{oc.env:NAME}} or ${{oc.env:NAME,DEFAULT}}") from None
    mapped(found, lambda _, each: remember(each))
    return found["value"]


def check_variables(name: str, value: Any) -> None:
    """ConfigError for a variable that is missing and has no default; the values of the others are masked from here on."""
    for variable, default in re.findall(r"oc\.env:\s*([^\s,}]+)\s*(,?)", value) if is_reference(value) else []:
        if variable not in os.environ and not default:
            raise ConfigError(f"{name}={value}: there is no environment variable {variable}; export it")
        remember(os.environ.get(variable))


def remember(value: Any) -> None:
    """Mask `value` in errors from here on."""
    if isinstance(value, str) and len(value) >= SHORTEST:
        _known.add(value)


def remember_written(text: str) -> None:
    """Mask the secrets that `text`, an argument of a command line, has written out."""
    for name, value in re.findall(r"([\w.]+)['\"]?\s*[:=]\s*([^\s{}]+)", text):
        for each in (value, *value.split(",")) if is_secret(name, value) else ():
            remember(each.strip("'\"[]"))


def masked(text: str) -> str:
    """`text` without any secret that is known, and without passwords in addresses."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, MASK)
    return PASSWORD.sub(f"://{MASK}@", text)


def is_secret(name: str, value: Any) -> bool:
    """Whether a setting is a secret that is written out."""
    last, text = name.rpartition(".")[2], str(value)
    if PASSWORD.search(text) or isinstance(value, bool) or value in (None, "", MASK) or "${" in text:
        return PASSWORD.search(text) is not None
    return SECRET.fullmatch(last) is not None or (last.lower().endswith("_key") and RANDOM.fullmatch(text) is not None)


def refuse_secrets(settings: dict[str, Any]) -> None:
    """ConfigError for a secret that is written out, which every record of a run would show."""
    def check(name: str, value: Any) -> None:
        if is_secret(name, value):
            raise ConfigError(f"{name} is a secret, which the records of a run would show; export it as a variable and set "
                              f"{name}='${{oc.env:NAME}}', or a setting that takes the name, such as token_env=NAME")

    mapped(settings, check)


def without_secrets(settings: Any) -> Any:
    """`settings` of a run whose records have secrets written out, with these masked."""
    return mapped(settings, lambda name, value: MASK if is_secret(name, value) else value)
