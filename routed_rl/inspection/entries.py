"""The environments that a user can name, and the search for them by name."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from routed_rl import console
from routed_rl.artifacts import data_root, find_data, resolve
from routed_rl.config import Compose, unknown
from routed_rl.envs.loading import class_path
from routed_rl.errors import ConfigError

GLOBAL = "# @package _global_"
"""The first line of a file of configs/env that also sets settings outside of `env`."""


@dataclass(frozen=True)
class Entry:
    """One environment that a user can name: an entry of a mix of configs/env, or a class alone."""

    mix: str
    name: str
    settings: dict[str, Any]

    @property
    def path(self) -> str:
        """The path of the environment's class, as `FILE.py:Class` or `package.module:Class`."""
        return class_path(self.settings)

    @property
    def class_name(self) -> str:
        return self.path.rpartition(":")[2]

    @property
    def split(self) -> str:
        """The split whose tasks are shown: "eval" for a probe environment, which may have no tasks for training; otherwise
        "train"."""
        return "eval" if self.settings.get("probe") else "train"


def named(name: str, overrides: list[str], compose: Compose) -> list[Entry]:
    """The entries that `name` stands for. `name` is a mix of configs/env; FILE.py:Class or package.module:Class; an entry of a
    mix, by itself or as MIX/NAME (as `env list` writes it); or an environment that `overrides` set (`env.NAME.path=...`, or
    `dataset=`)."""
    if ":" in name:
        found = _of_path(name, overrides, compose)
    elif any(re.match(rf"\+*env\.{re.escape(name)}\.(path|dataset|reward)=", text) for text in overrides):
        set_here = entries_of("empty", [text for text in overrides if not text.startswith("env=")], compose)
        found = [each for each in set_here if each.name == name]
    elif name in mixes():
        found = entries_of(name, overrides, compose)
    else:
        mix, word = _place(name)
        found = [each for each in entries_of(mix, overrides, compose) if each.name == word]
    if not found:
        raise ConfigError(f"{name} has no environment; set env.NAME.path=FILE.py:Class and give NAME")
    return found


def _of_path(path: str, overrides: list[str], compose: Compose) -> list[Entry]:
    """The entry of the class at `path`, which has the name of the class, and those that `overrides` set beside it. The path is no
    override itself, because a comma or a quote in it would mean something there."""
    word, others = path.rpartition(":")[2], entries_of("empty", overrides, compose)
    own = {"path": _absolute(path)} | next((each.settings for each in others if each.name == word), {})
    return [Entry("empty", word, own), *(each for each in others if each.name != word)]


def _place(name: str) -> tuple[str, str]:
    """The mix and the entry that NAME or MIX/NAME stands for. If several mixes have the entry, the first mix is taken and a line
    says so. ConfigError if no mix has it."""
    if name.endswith(".py"):
        raise ConfigError(f"{name} names no class; write {name}:CLASS")
    mix, _, word = name.rpartition("/")
    known = {each: entries_in(each) for each in mixes()}
    places = [each for each in known if word in known[each] and mix in ("", each)]
    if not places:
        words = sorted({*known, *(word for words in known.values() for word in words)})
        said = unknown(name, words).replace("unknown setting", "unknown environment")
        raise ConfigError(f"{said}; FILE.py:Class works, too")
    if len(places) > 1:
        console.say(f"{word} is in several mixes: this is {places[0]}/{word}; the others are {', '.join(places[1:])}")
    return places[0], word


def entries_in(mix: str) -> set[str]:
    """The names of the entries of a mix and of the mixes that it is based on. They are read from the YAML files alone, because
    composing every mix would take seconds."""
    text = _text(mix)
    written = yaml.safe_load(text) or {}
    first = [each.partition("@")[0] for each in written.get("defaults", []) if isinstance(each, str)]
    own = written.get("env", {}) if text.startswith(GLOBAL) else written
    return (own.keys() - {"defaults"}).union(*(entries_in(each) for each in first if each in mixes()))


def _text(mix: str) -> str:
    return (data_root() / "configs" / "env" / f"{mix}.yaml").read_text()


def mixes() -> list[str]:
    return sorted(file.stem for file in (data_root() / "configs" / "env").glob("*.yaml"))


def entries_of(mix: str, overrides: list[str], compose: Compose) -> list[Entry]:
    return [Entry(mix, name, settings) for name, settings in compose([f"env={mix}", *overrides]).env.items()]


def listed(mix: str, compose: Compose) -> list[Entry]:
    """The entries of a mix, for `env list`. If no entry refers to other settings, the entries are read from the file of the mix.
    Otherwise the mix is composed, which takes a quarter of a second."""
    text = _text(mix)
    written = yaml.safe_load(text) or {}
    if text.startswith(GLOBAL) or "${" in text or not all(isinstance(each, dict) for each in written.values()):
        return entries_of(mix, [], compose)
    return [Entry(mix, name, settings | {"path": _absolute(class_path(settings))}) for name, settings in written.items()]


def _absolute(path: str) -> str:
    """The `path` of a class; if it is `FILE.py:Class`, the path of the file is made absolute."""
    file, _, name = path.rpartition(":")
    return f"{resolve(file)}:{name}" if file.endswith(".py") else path


def folder_of(entry: Entry) -> str:
    """The folder with the file of the entry's class. If the class is given as `package.module:Class`, the result is that text."""
    file = entry.path.rpartition(":")[0]
    return file.rpartition("/")[0] if file.endswith(".py") else entry.path


def classes() -> Iterator[tuple[str, str]]:
    """For every class in environments/ that has a method `tasks` and a method `score` or `episode`: `FILE.py:Class` and the first
    line of its docstring. The files are not run."""
    for file in sorted((data_root() / "environments").rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            methods = {item.name for item in getattr(node, "body", []) if isinstance(item, ast.FunctionDef)}
            if isinstance(node, ast.ClassDef) and "tasks" in methods and methods & {"score", "episode"}:
                yield f"{file.relative_to(data_root())}:{node.name}", (ast.get_docstring(node) or "").split("\n")[0]


def first_line(path: str) -> str:
    """The first line of the docstring of the class at `FILE.py:Class`; empty if the file has no such class, or if `path` is
    `package.module:Class`."""
    place, _, name = path.rpartition(":")
    if not place.endswith(".py"):
        return ""
    tree = ast.parse(find_data(place).read_text())
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return (ast.get_docstring(found[0]) or "").split("\n")[0] if found else ""
