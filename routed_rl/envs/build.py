"""Finds a class or a function by its path, `FILE.py:Class` or `package.module:Class`, and builds environments. No registry."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from routed_rl.artifacts import find_data
from routed_rl.envs.core import AnyEnvironment, Environment, EpisodicEnvironment
from routed_rl.errors import ConfigError, TaskError


def build(name: str, path: str, arguments: dict[str, Any]) -> AnyEnvironment:
    """Import `path` and call the class with `arguments`."""
    factory, attribute = find_object(f"env.{name}.path", path), path.rpartition(":")[2]
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        hint = f"; a dataset with a reward function needs no class: leave env.{name}.path out" if "reward" in arguments else ""
        raise ConfigError(f"env.{name}: {attribute} does not take these settings: {error}{hint}") from None
    try:
        environment = factory(**arguments)
    except ConfigError as error:
        raise ConfigError(f"env.{name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise TaskError(f"env.{name}: {attribute}({arguments}) failed: {type(error).__name__}: {error}") from error
    if not isinstance(environment, (Environment, EpisodicEnvironment)):
        raise ConfigError(f"env.{name}.path={path}: {attribute} needs the methods tasks(split, seed) and "
                          "score(task, completion), or episode() for several turns")
    return environment


def find_object(setting: str, path: str, kind: str = "class") -> Any:
    """The object at `FILE.py:NAME` or `package.module:NAME`. If there is none, ConfigError names the setting and the `kind`."""
    (place, _, name), word = path.rpartition(":"), "Class" if kind == "class" else kind
    if not place:
        raise ConfigError(f"{setting}={path} names no {kind}; write FILE.py:{word} or package.module:{word}")
    try:
        return getattr(_module_from_file(place) if place.endswith(".py") else importlib.import_module(place), name)
    except FileNotFoundError:
        raise ConfigError(f"{setting}={path}: no such file; give a path relative to here, or an absolute one") from None
    except AttributeError:
        raise ConfigError(f"{setting}={path}: {place} has no {kind} {name}") from None
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{setting}={path} cannot be loaded: {type(error).__name__}: {error}") from error


def _module_from_file(place: str) -> Any:
    """The module of `FILE.py`, imported once; FileNotFoundError if there is no such file."""
    file = find_data(place)
    name = f"routed_rl_env_{file.stem}_{abs(hash(str(file)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # A plug-in may keep helpers beside itself.
    sys.path.insert(0, str(Path(file).parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(Path(file).parent))
    return module
