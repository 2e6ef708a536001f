"""Turns overrides into a `Config`, with Hydra. Every error is one line that names the nearest known setting.

No `+` is needed to add a key. Settings that `routed_rl.config` declares are checked there; the sections `env.*` and `trainer.*`
may have any keys. `routed_rl.cli.space` handles overrides with several values.
"""

import dataclasses
import functools
import re
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from routed_rl.artifacts import data_root
from routed_rl.cli.overrides import checked, one_line
from routed_rl.cli.paths import absolute
from routed_rl.config import Config, from_mapping
from routed_rl.config.adapter import FASTER
from routed_rl.config.checks import declared_types
from routed_rl.config.references import check_variables, is_reference, mapped, refuse_secrets
from routed_rl.errors import ConfigError


def compose(overrides: list[str]) -> Config:
    """The `Config` of the default experiment with these overrides. Names, types and ranges are checked."""
    folder = data_root() / "configs"
    texts = [checked(text, folder) for text in overrides]
    try:
        with initialize_config_dir(str(folder), job_name="routed_rl", version_base="1.3"):
            composed = hydra_compose("config", texts)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    config = _typed(composed)
    if config.model.adapter.trains and not any(text.lstrip("+").startswith(f"trainer.{RATE}=") for text in texts):
        _raise_rate(config.trainer)
    refuse_secrets(dataclasses.asdict(config))
    return config


RATE = "learning_rate"


def _raise_rate(trainer: dict[str, Any]) -> None:
    """Multiply the learning rate in the trainer's settings by `FASTER`, for a LoRA, because the rates in configs/ are for full
    weights."""
    if RATE in trainer:
        trainer[RATE] = float(f"{FASTER * trainer[RATE]:.12g}")


def _typed(composed: DictConfig) -> Config:
    """`composed` as a `Config`: every value has the type that its field declares, and paths relative to the current folder become
    absolute."""
    plain: Any = None
    written: Any = OmegaConf.to_container(composed, resolve=False)
    try:
        mapped(written, check_variables)
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        typed: Any = OmegaConf.to_container(OmegaConf.merge(_structure(), plain))
    except ConfigKeyError as error:
        from_mapping(plain)  # raises with the nearest known setting
        raise ConfigError(one_line(error)) from error
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "")
        declared = declared_types(Config).get(key)
        if not key or not isinstance(error, ValidationError):
            raise ConfigError(f"{key}: {one_line(error)}" if key else one_line(error)) from error
        of_numbers = declared_types(Config).get(key.rpartition(".")[0]) == "dict[str, float]"
        wanted = f"be {declared}" if declared is not None else "be a number" if of_numbers else (
            f"hold settings, such as {key}.NAME=VALUE")
        raise ConfigError(f"{key} must {wanted}, got {OmegaConf.select(composed, key)!r}") from error
    texts: dict[str, Any] = {}
    mapped(written, texts.__setitem__)
    typed["env"] = _with_references(written["env"], typed["env"], texts)
    typed["trainer"] |= {key: _with_references(written["trainer"][key], value, texts) for key, value in typed["trainer"].items()
                         if key not in AT_ONCE and not isinstance(value, (int, float))}
    subspace, model = typed["subspace"], typed["model"]["path"]
    for kind in ("prompts", "answers"):
        subspace[kind] = subspace[kind] or subspace[f"known_{kind}"].get(model)
    return from_mapping(mapped(typed, absolute))


@functools.cache
def _structure() -> DictConfig:
    """Every setting with its declared type; the user's settings are merged into it. It is made once, because making it takes a
    third of the time of `compose`."""
    return OmegaConf.structured(Config)


AT_ONCE = ("path", "probe", "algorithm", "optim", "report_to")
"""Settings of environments and of the trainer that are not secret and are read in many places, so references in them to
environment variables are resolved at once."""


def _with_references(written: Any, found: Any, texts: dict[str, Any]) -> Any:
    """`found`, the resolved form of `written`, in which references to environment variables are put back. `texts` maps the name
    of each setting to its text as written. If `written` is `${another.setting}`, and the text of that setting is such a
    reference, this reference is returned."""
    if isinstance(written, dict):
        return {key: inner if key in AT_ONCE else _with_references(written[key], inner, texts) for key, inner in found.items()}
    if isinstance(written, list):
        return [_with_references(*pair, texts) for pair in zip(written, found, strict=True)]
    text = re.sub(r"\$\{([\w.]+)\}", lambda name: str(texts.get(name[1], name[0])), written) if isinstance(written, str) else None
    return text if is_reference(text) else found
