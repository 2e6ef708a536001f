"""Loads the environments of a run from its config, each in a process of its own or in this one, with its weight."""

from typing import Any

from routed_rl.config import check_finite, name_problem
from routed_rl.config.references import resolved
from routed_rl.envs.build import OWN_KEYS
from routed_rl.envs.curriculum import build_staged, check_stages, parse_weight
from routed_rl.envs.host.isolation import Isolation
from routed_rl.envs.host.process import EnvironmentProcess
from routed_rl.envs.mixture import LoadedEnvironment
from routed_rl.errors import ConfigError

TAKEN = ("all", "cosine", "norm", "total", "unattributed")
"""Names that no environment may have, because metrics use them."""
DATASET = "routed_rl.envs.dataset:DatasetEnvironment"


def load_environments(env: dict[str, dict[str, Any]]) -> list[LoadedEnvironment]:
    """Build every environment of the config's section `env`. The settings of an environment, except `OWN_KEYS`, are passed to its
    class. Environments in processes of their own start at the same time, and this function waits until all are ready."""
    loaded = [load_environment(name, settings) for name, settings in env.items()]
    for entry in loaded:
        if isinstance(entry.environment, EnvironmentProcess):
            _ = entry.environment.description  # Waits until the process is ready, and raises if that fails.
    return loaded


def load_environment(name: str, settings: Any) -> LoadedEnvironment:
    """Load one environment. If it has a process of its own, that process is started, but not waited for."""
    if problem := name_problem(name, TAKEN):
        raise ConfigError(f"env.{name!r:.60}: an environment's name {problem}; choose another one")
    if not isinstance(settings, dict) or not class_path(settings):
        raise ConfigError(f"env.{name} has no path; set env.{name}.path=FILE.py:Class, or env.{name}.dataset=FILE and "
                          f"env.{name}.reward=FILE.py:function")
    settings = resolved(settings, f"env.{name}")
    check_finite(f"env.{name}", settings)
    weights, probe = parse_weight(name, settings.get("weight", 1.0)), settings.get("probe", False)
    if not isinstance(probe, bool):
        raise ConfigError(f"env.{name}.probe must be true or false, got {probe}")
    path, stages = class_path(settings), settings.get("stages")
    arguments = arguments_of(settings)
    if stages is not None:
        check_stages(name, stages)
    isolation = Isolation.parse(name, settings.get("isolate", True))
    environment = (build_staged(name, path, arguments, stages) if isolation is None
                   else EnvironmentProcess(name, path, arguments, stages, isolation))
    return LoadedEnvironment(name, environment, weights, probe)


def class_path(settings: dict[str, Any]) -> str:
    """The path of an environment's class: the setting `path`; without it, that of `DatasetEnvironment` if there is a setting
    `dataset` or `reward`; otherwise empty."""
    return str(settings.get("path") or (DATASET if settings.get("dataset") or settings.get("reward") else ""))


def arguments_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are passed to an environment's class as arguments. For a dataset that is a probe environment, `holdout`
    is 0 by default, so that all of its rows are evaluated."""
    whole = {"holdout": 0.0} if class_path(settings) == DATASET and settings.get("probe") else {}
    return whole | {key: resolved(value, key) for key, value in settings.items() if key not in OWN_KEYS}
