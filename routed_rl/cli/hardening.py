"""The verb `relearn`, which attacks deployed models, and the functions that read its options; see `actions`."""

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

from routed_rl.artifacts import ADAPTER_CONFIG
from routed_rl.cli.compose import compose
from routed_rl.cli.overrides import hydra_text
from routed_rl.cli.words import names, numbers, places, refuse_fixed
from routed_rl.config import Config
from routed_rl.config.robust import FINE_TUNING, RelearnConfig
from routed_rl.errors import ConfigError
from routed_rl.importing import importing


def relearn(given: Namespace) -> None:
    if given.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {given.jobs}")
    asked, others = attacks(given, given.env), places("--also", given.also)
    own = {"trainer.max_steps": f"--steps {asked.steps}", "trainer.learning_rate": "--rates R",
           "evaluation.samples": f"--samples {asked.samples}"}
    refuse_fixed(given.typed, own | dict.fromkeys(("routing", "routing.mode"), "an attack, which trains without routing,") | {
        "name": "the rate of each attack"})
    settings = experiment(given)
    with importing():
        from routed_rl.multirun.relearn import relearn as relearn_model

    relearn_model(given.target, asked, given.json, others, settings, given.jobs)


def attacks(given: Namespace, env: str) -> RelearnConfig:
    """The settings of relearning attacks in the environment `env`, read from the options of the verb `relearn`, or from those of
    `compare`, which has some of the same options."""
    own: dict[str, Any] = {field.name: value for field in dataclasses.fields(RelearnConfig)
                           if (value := getattr(given, field.name, None)) is not None}
    own |= {"env": env}
    if given.flag is not None:
        own["flags"] = [given.flag]
    if given.rates is not None:
        own["rates"] = numbers("--rates", given.rates, float, "1e-5,1e-4,1e-3")
    if (by := getattr(given, "by", None)) is not None:
        own["by"] = names([by])
    found = RelearnConfig(**own)
    if FINE_TUNING not in found.by and (unread := [name for name in ("completions", "samples") if name in own]):
        raise ConfigError(f"--{unread[0]} {own[unread[0]]} is for --by sft, not for --by {','.join(found.by)}; leave it out")
    return found


def experiment(given: Namespace) -> Config | None:
    """If the command's target is a model, or a LoRA on one: the settings made from the overrides. If the target is a run, which
    has settings of its own: None; ConfigError if there are overrides, which would silently change the run's settings."""
    if not (Path(given.target) / "config.yaml").exists():
        fixed = {"model.path": f"the model {given.target}", "out": "--json FILE"}
        adapter = (Path(given.target).expanduser() / ADAPTER_CONFIG).is_file()
        if adapter:
            fixed = {"model.adapter.path": f"the LoRA {given.target}", "out": "--json FILE"}
        if (engine := getattr(given, "engine", None)) is not None:  # only `evaluate` has this option
            fixed |= dict.fromkeys(("rollout", "rollout.engine"), f"--engine {engine}")
        refuse_fixed(given.overrides, fixed)
        return compose(_on_base(given) if adapter else given.overrides)
    if given.overrides:
        raise ConfigError(f"{given.target} is a run folder and brings its settings; leave out "
                          f"{' '.join(given.overrides)}, or give {given.target}/deployed")
    return None


def _on_base(given: Namespace) -> list[str]:
    """The overrides for a target that is the folder of a LoRA. The base model is the one that the user gives, or else the one
    that the folder names."""
    from routed_rl.pipeline.adapters import base_of

    folder, keys = Path(given.target).expanduser().absolute(), {text.partition("=")[0].lstrip("+") for text in given.overrides}
    base = [] if keys & {"model", "model.path"} else [f"model.path={hydra_text(base_of(folder))}"]
    kind = [] if keys & {"model.adapter", "model.adapter.kind"} else ["model.adapter=lora"]
    return [*kind, *given.overrides, *base, f"model.adapter.path={hydra_text(str(folder))}"]
