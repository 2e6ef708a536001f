"""Settings that refer to environment variables, and settings that are secrets. Records of a run hold the reference
`${oc.env:NAME}`, never its value.

Not covered: text that a plug-in prints or writes itself, and the operating system's list of processes.
"""

import os
import re
from collections.abc import Callable
from typing import Any

from routed_rl.errors import ConfigError

SECRET = re.compile(r"(?i)(?!(?:pad|eos|bos|unk|sep|cls|mask|stop|start|end)_token$)(?:.*_)?(?:token|password|passwd|passphrase|"
                    r"secret|credentials?|authorization|(?:api|access|secret|private|auth|hub|openai|anthropic)_?key)")
"""Pattern of the names of settings whose values are secrets. It does not match the special tokens of a tokenizer."""
RANDOM = re.compile(r"(?=.*\d)\S{8,}|\S{24,}")
"""Pattern of values that look random. A setting whose name ends in `_key` is a secret if it has such a value: `answer_key=name`
only names something, but `my_key=f81d4fae` gives access to something."""
PASSWORD = re.compile(r"://[^/\s:@]*:(?!\$\{)[^/\s@]+@")
MASK, SHORTEST = "***", 4
"""`MASK` replaces a secret in texts, if the secret has at least `SHORTEST` characters. A shorter secret would also match inside
ordinary words."""
LATER = ("env", "trainer")
"""Sections in which references are resolved only when a setting is used, so that every record holds the reference."""
_known: set[str] = set()


def mapped(value: Any, change: Callable[[str, Any], Any], name: str = "") -> Any:
    """A copy of nested mappings and lists in which each plain value is replaced by `change(dotted name, value)`. Tuples become
    lists. `name` is the dotted name of `value` itself."""
    if isinstance(value, dict):
        return {key: mapped(inner, change, f"{name}.{key}".lstrip(".")) for key, inner in value.items()}
    return [mapped(inner, change, name) for inner in value] if isinstance(value, (list, tuple)) else change(name, value)


def is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value and "oc.env" in value


def resolved(value: Any, name: str = "") -> Any:
    """`value`, in which each reference is replaced by the value of its environment variable. `name` is the setting's name for
    messages. ConfigError if a variable is missing."""
    return mapped(value, _resolved, name)


def resolved_at_once(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, in which references are resolved, except in the sections that `LATER` names."""
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
    """Raise ConfigError if a setting refers to an environment variable that is missing and has no default. The values of the
    variables that exist are masked in all later error messages."""
    for variable, default in re.findall(r"oc\.env:\s*([^\s,}]+)\s*(,?)", value) if is_reference(value) else []:
        if variable not in os.environ and not default:
            raise ConfigError(f"{name}={value}: there is no environment variable {variable}; export it")
        remember(os.environ.get(variable))


def remember(value: Any) -> None:
    """Mask `value` in all later error messages."""
    if isinstance(value, str) and len(value) >= SHORTEST:
        _known.add(value)


def remember_written(text: str) -> None:
    """Mask, in all later error messages, each secret that `text`, an argument of the command line, spells out."""
    for name, value in re.findall(r"([\w.]+)['\"]?\s*[:=]\s*([^\s{}]+)", text):
        for each in (value, *value.split(",")) if is_secret(name, value) else ():
            remember(each.strip("'\"[]"))


def masked(text: str) -> str:
    """`text`, in which every secret that `remember` was given, and every password in an address, is masked."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, MASK)
    return PASSWORD.sub(f"://{MASK}@", text)


def is_secret(name: str, value: Any) -> bool:
    """Whether the setting `name` is a secret whose value is spelled out instead of being a reference."""
    last, text = name.rpartition(".")[2], str(value)
    if PASSWORD.search(text) or isinstance(value, bool) or value in (None, "", MASK) or "${" in text:
        return PASSWORD.search(text) is not None
    return SECRET.fullmatch(last) is not None or (last.lower().endswith("_key") and RANDOM.fullmatch(text) is not None)


def refuse_secrets(settings: dict[str, Any]) -> None:
    """Raise ConfigError for a secret that is spelled out, because every record of a run would show it."""
    def check(name: str, value: Any) -> None:
        if is_secret(name, value):
            raise ConfigError(f"{name} is a secret, which the records of a run would show; export it as a variable and set "
                              f"{name}='${{oc.env:NAME}}', or a setting that takes the name, such as token_env=NAME")

    mapped(settings, check)


def without_secrets(settings: Any) -> Any:
    """The settings of a run, in which secrets that are spelled out are masked."""
    return mapped(settings, lambda name, value: MASK if is_secret(name, value) else value)
