"""Finds a class or a function by its path, `FILE.py:Class` or `package.module:Class`, and builds environments. There is no
registry."""

import importlib
import inspect
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from routed_rl.artifacts import find_data
from routed_rl.config import closest
from routed_rl.envs.contract import check_methods
from routed_rl.envs.core import AnyEnvironment, Environment, EpisodicEnvironment
from routed_rl.envs.faults import definition, failure_of
from routed_rl.envs.modules import module_from_file
from routed_rl.errors import ConfigError, RoutedRLError, TaskError

OWN_KEYS = ("path", "weight", "probe", "isolate", "stages")
"""The settings of an environment that are not passed to its class."""
TOKEN_ENV = "token_env"
"""The setting that names environment variables with secrets, which the process of an environment then sees. It is an argument of
the class only if the class takes it."""


def build(name: str, path: str, arguments: dict[str, Any], taken: Collection[str] = OWN_KEYS) -> AnyEnvironment:
    """Import the class at `path`, call it with `arguments` and return the environment `name`. ConfigError if the object does not
    fulfil the contract, if a setting is wrong, or if the class takes an argument that is not in `arguments` and has one of the
    names in `taken`, because it could not be set; TaskError if the class raises any other error."""
    factory, attribute = find_object(f"env.{name}.path", path), path.rpartition(":")[2]
    if not callable(factory):
        raise ConfigError(f"env.{name}.path={path}: {attribute} is an object of the class {type(factory).__name__}, no class; "
                          "give the name of a class, or of a function that returns an environment")
    if TOKEN_ENV in arguments and not _takes(factory, TOKEN_ENV):  # for most classes it is enough that the process sees it
        arguments = {key: value for key, value in arguments.items() if key != TOKEN_ENV}
    _check_names(name, attribute, factory, [key for key in taken if key not in arguments])
    _check_arguments(name, attribute, factory, arguments)
    try:
        environment = factory(**arguments)
    except ConfigError as error:
        raise ConfigError(f"env.{name}: {error}") from error
    except (Exception, SystemExit) as error:
        failure = failure_of(error, f"{attribute}({arguments}) failed:", lambda: definition(factory))
        if type(error) is ValueError:  # the class refuses a setting, and its own words say which
            failure = replace(failure, place="", remedy="")
        raise TaskError(f"env.{name}: {failure.text}") from error
    if not isinstance(environment, (Environment, EpisodicEnvironment)):
        line = definition(factory)
        raise ConfigError(f"env.{name}.path={path}: {line and f'{line}: '}{attribute} needs the methods tasks(split, seed) and "
                          "score(task, completion), or episode() for several turns; add what is missing")
    check_methods(name, environment)
    return environment


def _takes(factory: Any, argument: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return argument in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _check_names(name: str, attribute: str, factory: Any, taken: Collection[str]) -> None:
    """Raise ConfigError if the class `factory` has an argument with one of the names in `taken`. `name` and `attribute` as in
    `_check_arguments`."""
    named = [key for key, each in inspect.signature(factory).parameters.items()
             if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if wrong := [key for key in named if key in taken]:
        line = definition(factory)
        raise ConfigError(f"env.{name}: {line and f'{line}: '}{attribute} takes the argument {wrong[0]}, which cannot be set, "
                          f"because the setting {wrong[0]} of an environment is routed_rl's own; rename the argument, or give a "
                          f"function as path that calls {attribute} and names it otherwise")


def _check_arguments(name: str, attribute: str, factory: Any, arguments: dict[str, Any]) -> None:
    """Raise ConfigError if the class `factory` needs an argument that `arguments` lack, or does not take one that they have.
    `name` is the name of the environment and `attribute` that of the class, for the message."""
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        named = {key: each for key, each in inspect.signature(factory).parameters.items()
                 if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        missing = [key for key, each in named.items() if each.default is each.empty and key not in arguments]
        strange = [key for key in arguments if key not in named]
        near = closest(strange[0], [*named], 0.6) if strange else None
        if "completions" in missing:
            hint = f"a reward function is given as env.{name}.reward, with env.{name}.dataset and without env.{name}.path"
        elif "reward" in strange:
            hint = f"a dataset with a reward function needs no class: leave env.{name}.path out"
        elif near:
            hint = f"did you mean env.{name}.{near}?"
        elif strange:
            hint = f"it takes {', '.join(named) or 'none'}: leave env.{name}.{strange[0]} out, or add it to __init__"
        else:
            hint = "set " + " ".join(f"env.{name}.{key}=VALUE" for key in missing)
        line = definition(factory)
        raise ConfigError(f"env.{name}: {line and f'{line}: '}{attribute} does not take these settings: {error}; "
                          f"{hint}") from None


def find_object(setting: str, path: str, kind: str = "class") -> Any:
    """The object at the path `FILE.py:NAME` or `package.module:NAME`. If there is none, ConfigError names the `setting` that
    holds the path, and the `kind` of object that is wanted, "class" or "function"."""
    (place, _, name), word = path.rpartition(":"), "Class" if kind == "class" else kind
    if not place:
        raise ConfigError(f"{setting}={path} names no {kind}; write FILE.py:{word} or package.module:{word}")
    try:
        file = find_data(place) if place.endswith(".py") else None
    except FileNotFoundError:
        raise ConfigError(f"{setting}={path}: no such file; give a path relative to here, or an absolute one") from None
    try:
        module = importlib.import_module(place) if file is None else module_from_file(file, f"{setting}={path}")
    except RoutedRLError:
        raise
    except (Exception, SystemExit) as error:
        if file is None and isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            here = f"{place.replace('.', '/')}.py"
            way = f"write {here}:{name}" if Path(here).is_file() else f"pip install what has it, or write FILE.py:{word}"
            raise ConfigError(f"{setting}={path}: there is no module {error.name}; {way}") from None
        raise ConfigError(f"{setting}={path}: {failure_of(error, 'cannot be loaded:').text}") from error
    if (found := getattr(module, name, None)) is not None:
        return found
    offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
               and getattr(value, "__module__", None) == module.__name__ and isinstance(value, type) == (kind == "class")]
    near = closest(name, offered, 0.6)
    hint = f"did you mean {near}?" if near else f"it has {', '.join(offered[:8])}" if offered else f"write a {kind} there"
    raise ConfigError(f"{setting}={path}: {place} has no {kind} {name}; {hint}")
