"""The environments of a run from its config: each in a process of its own, or in this one, with its weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from routed_rl.envs.core import AnyEnvironment
from routed_rl.envs.curriculum import Schedule, build_staged, check_stages, parse_weight
from routed_rl.envs.process import EnvironmentProcess, Isolation
from routed_rl.errors import ConfigError

OWN_KEYS = ("path", "weight", "probe", "isolate", "stages")


@dataclass(frozen=True)
class LoadedEnvironment:
    """An environment under the name it has in the run."""

    name: str
    environment: AnyEnvironment
    weight: float = 1.0
    """Share of the tasks at the start, relative to the other trained environments."""
    probe: bool = False
    """Only evaluated, never trained on."""
    schedule: Schedule = field(default=())
    """The weights of the whole run where they change; empty for `weight` all along."""

    @property
    def label(self) -> str:
        """The name for people, with the variant where the class has one: `code (insecure)`."""
        variant = getattr(self.environment, "variant", None)
        return f"{self.name} ({variant})" if variant else self.name

    @property
    def weights(self) -> Schedule:
        return self.schedule or ((0, self.weight),)


def load_environments(env: dict[str, dict[str, Any]]) -> list[LoadedEnvironment]:
    """Build every environment of the config; keys other than `OWN_KEYS` go to its class. Processes start side by side."""
    loaded = [load_environment(name, settings) for name, settings in env.items()]
    for entry in loaded:
        if isinstance(entry.environment, EnvironmentProcess):
            _ = entry.environment.description  # Waits until it is ready, and raises where it cannot be.
    return loaded


def load_environment(name: str, settings: Any) -> LoadedEnvironment:
    """One of them; a process of its own has been started, and is not waited for."""
    if not isinstance(settings, dict) or not settings.get("path"):
        raise ConfigError(f"env.{name} has no path; set env.{name}.path=FILE.py:Class")
    weights, probe = parse_weight(name, settings.get("weight", 1.0)), settings.get("probe", False)
    if not isinstance(probe, bool):
        raise ConfigError(f"env.{name}.probe must be true or false, got {probe}")
    path, stages = str(settings["path"]), settings.get("stages")
    arguments = arguments_of(settings)
    if stages is not None:
        check_stages(name, stages)
    isolation = Isolation.parse(name, settings.get("isolate", True))
    environment = (build_staged(name, path, arguments, stages) if isolation is None
                   else EnvironmentProcess(name, path, arguments, stages, isolation))
    return LoadedEnvironment(name, environment, weights[0][1], probe, weights if len(weights) > 1 else ())


def arguments_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What goes to the class."""
    return {key: value for key, value in settings.items() if key not in OWN_KEYS}


def trained(environments: list[LoadedEnvironment]) -> list[LoadedEnvironment]:
    """Those with a share of the training at some time; none, or a time at which nobody has one, is an error."""
    chosen = [loaded for loaded in environments if not loaded.probe and any(weight > 0 for _, weight in loaded.weights)]
    if not chosen:
        raise ConfigError(f"no environment to train on among {[e.name for e in environments]}; "
                          "set env.NAME.path=FILE.py:Class for at least one that is no probe")
    for start in sorted({start for loaded in chosen for start, _ in loaded.weights}):
        if not any(weight_at(loaded.weights, start) > 0 for loaded in chosen):
            raise ConfigError(f"from task {start} on every environment has weight 0; give one of "
                              f"{', '.join(loaded.name for loaded in chosen)} a weight > 0 there")
    return chosen


def weight_at(weights: Schedule, task: int) -> float:
    """The weight of the run's task number `task`."""
    return [weight for start, weight in weights if start <= task][-1]
