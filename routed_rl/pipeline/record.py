"""The record of a run in its folder: the settings, the overrides that the user typed, and facts in the manifest."""

import dataclasses
import importlib.metadata
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from routed_rl import __version__
from routed_rl.artifacts import RunFolder, as_moved, at_present, left_root, resolve, write_json, write_text
from routed_rl.config import Config, from_mapping
from routed_rl.config.checks import is_drawn
from routed_rl.config.references import LATER, is_reference, mapped, refuse_secrets, resolved, resolved_at_once
from routed_rl.errors import CheckpointError, ConfigError, RunFolderError

LISTS = ("roles_file", "traits_file", "questions_file")
"""Settings of the subspace by which a run tells where the package's data lay: unless a user gives other lists, they name files of
it, whether or not the run reads them."""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def new_folder(config: Config) -> RunFolder:
    """The folder for a new run of `config`. A folder that holds anything is refused."""
    run = RunFolder(config.out or f"runs/{datetime.now().strftime('%Y-%m-%d-%H%M%S')}-{config.name}")
    run.refuse_if_taken()
    return run


def require_base(run: RunFolder, config: Config, digest: str) -> None:
    """Raise CheckpointError unless `digest`, the hash of a base model's weights, equals the hash that the run recorded when it
    began."""
    if (was := run.facts().get("model_hash", digest)) != digest:
        raise CheckpointError(f"{config.model.path} is not the base model of {run.path}: its weights are {digest[:12]}, the run "
                              f"began with {was[:12]}; put that model back")


def write_config(run: RunFolder, config: Config, overrides: list[str]) -> None:
    """Write the settings, the overrides that the user typed, and the versions of libraries into the run folder. ConfigError if a
    setting spells out a secret instead of referring to an environment variable."""
    settings = mapped(dataclasses.asdict(config), lambda _, value: value)
    refuse_secrets(settings)
    write_text(run.path / "overrides.txt", "".join(f"{override}\n" for override in overrides))
    versions = {"routed_rl": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}
    begun = run.facts().get("created") if run.manifest.exists() else None  # a run that goes on has begun before
    now = datetime.now(UTC).isoformat(timespec="seconds")
    tell(run, {"created": begun or now, "versions": versions, "overrides": overrides})
    write_text(run.config, yaml.safe_dump(_as_typed(settings, overrides), sort_keys=False))


def _as_typed(settings: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`settings`, in which a value is replaced by the reference that the user typed if the reference resolves to that value."""
    for key, value in (override.lstrip("+").split("=", 1) for override in overrides if "=" in override):
        section, last = settings, key.rpartition(".")[2]
        for name in key.split(".")[:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        alone = is_reference(value) and key.split(".")[0] not in LATER and not re.search(r"\$\{(?!oc\.)", value)
        if alone and isinstance(section, dict) and resolved(value, key) == section.get(last):
            section[last] = value
    return settings


def dated(config: Config, date: str | None = None) -> Config:
    """`config` with `model.date` filled in, which the run keeps from then on: its own value if it has one, or else `date`, or
    else the present time."""
    date = config.model.date or date or datetime.now().isoformat(timespec="seconds")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, date=date))


def read_config(run: RunFolder) -> Config:
    """The settings of a run. A run that is older than the setting `model.date` gets the day on which it was made as its date. If
    the package was moved since the run began, files that come with it have their present paths. A run whose folder was moved away
    from the LoRA with which it began has its own copy of its base model (see `at_base`). RunFolderError if the settings or the
    facts are damaged. ConfigError if a setting refers to an environment variable that is missing (for settings of
    environments this is noticed when they are built)."""
    facts = run.facts()
    run.halt()
    try:
        settings = resolved_at_once(run.settings())
        if left := _left(settings):
            settings = mapped(settings, lambda _, value: at_present(value, left) if isinstance(value, str) else value)
        return at_base(dated(from_mapping(as_it_was(settings)), facts.get("created")), run)
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{run.config} does not say what this run was ({error}); take it from another copy of the "
                             "folder") from error


def at_base(config: Config, run: RunFolder) -> Config:
    """`config`, the settings of a run or of its rollback. If the run has merged a LoRA into its base model, and the LoRA or that
    model is no longer at its place, the base model is RUN/base, which holds the merged model."""
    model, lora = config.model, config.model.adapter.path
    if lora is None or not run.base.is_dir():
        return config
    places = [lora, model.path.removeprefix("gguf:")]
    if all(Path(resolve(place)).exists() for place in places if Path(place).is_absolute()):  # other places are on the hub
        return config
    merged = dataclasses.replace(model, path=str(run.base), adapter=dataclasses.replace(model.adapter, path=None))
    return dataclasses.replace(config, model=merged)


def _left(settings: dict[str, Any]) -> str | None:
    """The place from which the package's data has moved since a run with these `settings` began; None if it is still there, or if
    no file of persona lists tells where it lay."""
    subspace = settings.get("subspace")
    lists = [subspace.get(name) for name in LISTS] if isinstance(subspace, dict) else []
    return next(filter(None, map(left_root, lists)), None)


def moved(was: Config, now: Config) -> Config:
    """`was`, the settings of a run, with the paths of the package's own files that `now` has, because the package may lie at
    another place since the run began."""
    return from_mapping(as_moved(dataclasses.asdict(was), dataclasses.asdict(now)))


def as_it_was(settings: dict[str, Any]) -> dict[str, Any]:
    """Return `settings`, the settings of a run. If the run is older than the settings for practice and pace, these are added as
    the run behaved: no practice, and the pace `fast`."""
    routing = settings.get("routing")
    if isinstance(routing, dict) and "practice" not in routing and isinstance(routing.get("quarantine", {}), dict):
        routing |= {"practice": {"share": 0}, "quarantine": {"pace": "fast"} | routing.get("quarantine", {})}
    return settings


def read_overrides(run: RunFolder) -> list[str]:
    """The overrides that the user typed when the run began, followed by those that were typed each time it was continued. Files
    that come with the package have their present paths, as in `read_config`."""
    left = _left(run.settings())
    try:
        typed = run.typed((run.path / "overrides.txt").read_text(encoding="utf-8"))
        return [at_present(text, left) for text in typed] if left else typed
    except ValueError as error:
        raise RunFolderError(f"{run.path}/overrides.txt is damaged ({error}); take it from another copy of the folder") from error


def tell(run: RunFolder, facts: dict[str, Any]) -> None:
    """Add `facts` to the manifest. Facts with other names stay as they are."""
    write_json(run.manifest, (run.facts() if run.manifest.exists() else {}) | facts)


def fresh_from_step(run: RunFolder) -> int:
    """For a run made by a rollback with other environments, the step after which its mixture starts afresh; 0 for every other
    run."""
    return run.facts().get("fresh_from_step") or 0


def inherited(run: RunFolder) -> list[str]:
    """The environments that are no longer trained on but whose parts are still in the run's quarantine."""
    return run.facts().get("inherited", [])


def trained_settings(config: Config) -> dict[str, Any]:
    """The settings of those environments that are trained on: no probes, and none whose weight is always 0."""
    return {name: settings for name, settings in config.mixture.items()
            if is_drawn(settings) and not (isinstance(settings, dict) and settings.get("probe"))}


def tell_kept(run: RunFolder, out: Path, shares: dict[str, float]) -> None:
    """Record in the manifest which shares of parts the deployed model in the folder `out` keeps. An earlier record of that folder
    is replaced."""
    known = run.facts().get("kept", [])
    if known or shares:
        others = [each for each in known if each.get("out") != str(out)]
        tell(run, {"kept": [*others, *([{"out": str(out), "shares": shares}] if shares else [])]})
