"""Completion in a shell: `routed-rl completion SHELL` prints a script from `shells/`. At each press of Tab that script calls
`routed-rl --complete WORD...`, which prints the possible completions of the last word.

Not covered: words with blanks in them. Nothing heavy is imported, because a press of Tab must be answered at once.
"""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from routed_rl.artifacts import data_root
from routed_rl.cli.verbs import VERBS, Option
from routed_rl.config import Config
from routed_rl.config.checks import declared_types
from routed_rl.multirun.arms import ARMS


def candidates(words: list[str]) -> list[str]:
    """The possible completions of the last of `words`, which may be empty. `words` are all words after `routed-rl`, up to the
    cursor. Nothing is returned where a file or folder is expected, because a shell completes these itself."""
    *before, word = words or [""]
    if not before:
        return _beginning(word, [*VERBS, "--help", "--version"])
    if (verb := VERBS.get(before[0])) is None:
        return []
    options = {name: each for each in verb.options for name in each[0] if name.startswith("-")}
    places = [each for each in verb.options if not each[0][0].startswith("-")]
    if (last := options.get(before[-1])) is not None and _takes_value(last):
        return _values(last, before, word)
    if word.startswith("-"):
        return _beginning(word, [*options, "--help"])
    at = sum(1 for each, left in zip(before[1:], before, strict=False)
             if not each.startswith("-") and not _takes_value(options.get(left)))
    place = places[min(at, len(places) - 1)] if places and (at < len(places) or places[-1][1].get("nargs") == "*") else None
    return [] if place is None else _values(place, before, word)


def _takes_value(option: Option | None) -> bool:
    return option is not None and option[1].get("action") != "store_true"


def _values(option: Option, before: list[str], word: str) -> list[str]:
    names, declared = option
    if "choices" in declared:
        return _beginning(word, declared["choices"])
    # The positional `name` is an environment for `env`, and a new name for `new`.
    known = KNOWN.get(names[0]) or (environments if (before[0], names[0]) == ("env", "name") else None)
    if known is None:
        return []
    if names[0] not in ("--arms", "--env", "--drop"):
        return _beginning(word, known(before, word))
    earlier = word[:word.rfind(",") + 1]
    return _beginning(word, [earlier + each for each in known(before, word) if each not in earlier.split(",")])


def settings(before: list[str], word: str) -> list[str]:
    """Completions of `word` from the settings. If `word` begins with `KEY=`: `KEY=VALUE` for each known value of that setting.
    Otherwise: names of settings, each only up to the first dot after `word`, as a shell shows folders. They need not begin with
    `word`; the caller filters them. `before` has the earlier words of the command line."""
    key, equals, _ = word.partition("=")
    types, groups = declared_types(Config), _groups()
    if equals:
        kind = types.get(key, "")
        known = [*groups.get(key, []), *(["true", "false"] if kind.startswith("bool") else []), *["null"] * ("or null" in kind)]
        return [f"{key}={value}" for value in known]
    own = [f"env.{name}." for name in environments(before, word)] if word.startswith("env.") else ["env."]
    free = [*(f"trainer.{name}" for name in _written("trainer/grpo")), *own]
    sections = {name.rpartition(".")[0] for name in types}
    plain = [name for name in types if name not in sections and name not in ("env", "trainer")]
    found = [name if name.endswith(".") else f"{name}=" for name in [*plain, *groups, *free]]
    return list(dict.fromkeys(name[:dot + 1] if (dot := name.find(".", len(word))) > 0 else name for name in found))


def environments(before: list[str], _: str) -> list[str]:
    """The environments of the run folder that one of the words `before` names, or, if none does, all environments of configs/env;
    for the verb `env` also the names of the mixes."""
    run = next((path for word in before[1:] if (path := Path(word).expanduser() / "config.yaml").is_file()), None)
    if run is not None:
        return list(_read(run).get("env", {}))
    mixes = _groups()["env"]
    inside = dict.fromkeys(name for mix in mixes for name, each in _written(f"env/{mix}").items() if isinstance(each, dict))
    return [*mixes, *(name for name in inside if name not in mixes)] if before[0] == "env" else list(inside)


@cache
def _groups() -> dict[str, list[str]]:
    """Maps each group of ready-made settings, which is a folder of configs/ such as `env`, to the names of its choices."""
    root = data_root() / "configs"
    folders = sorted(path for path in root.rglob("*") if path.is_dir())
    return {".".join(each.relative_to(root).parts): sorted(file.stem for file in each.glob("*.yaml")) for each in folders}


@cache
def _written(name: str) -> dict[str, Any]:
    found = _read(data_root() / "configs" / f"{name}.yaml")
    return found.get("env", found) if name.startswith("env/") else found


def _read(file: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def _beginning(word: str, known: Iterable[str]) -> list[str]:
    return [each for each in known if each.startswith(word)]


KNOWN: dict[str, Callable[[list[str], str], list[str]]] = {
    "overrides": settings, "--arms": lambda *_: list(ARMS), "--env": environments, "--drop": environments,
    "word": lambda *_: list(declared_types(Config))}
"""For each option or positional argument, the function that gives its possible values. The function gets the earlier words of the
command line, and the word that is to be completed."""
