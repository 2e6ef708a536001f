"""Every setting and its default. Nothing here imports torch, because `routed-rl --help` and a bad override must answer at once.

`trainer` is a free mapping. Besides `algorithm` and `lean`, its keys are fields of TRL's own class, such as `GRPOConfig`. They
are checked against that class when the trainer is built. `env` maps the name of each environment to `path` (or `dataset` and
`reward`), `weight`, `probe` and the keyword arguments of its class.
"""

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from routed_rl.config.adapter import AdapterConfig
from routed_rl.config.baseline import BaselineConfig, ContextsConfig, TraitConfig, interleaved
from routed_rl.config.checks import AUTO, check_finite, check_share, closest, name_problem, section, unknown
from routed_rl.config.detector import PROBE, DetectorConfig
from routed_rl.config.launch import LaunchConfig
from routed_rl.config.model import ModelConfig
from routed_rl.config.monitor import MonitorConfig, RuleConfig
from routed_rl.config.results import AuditConfig, EvaluationConfig, FilterConfig, TrackingConfig
from routed_rl.config.rollout import ParityConfig, RolloutConfig
from routed_rl.config.routing import LABELS, LabelsConfig, PracticeConfig, QuarantineConfig, RandomControlConfig, RoutingConfig
from routed_rl.config.subspace import UNNAMED, DegradeConfig, SubspaceCheckConfig, SubspaceConfig
from routed_rl.config.sweep import PruneConfig, SweepConfig
from routed_rl.errors import ConfigError
from routed_rl.shapes import fits

__all__ = ["AUTO", "LABELS", "UNNAMED", "AdapterConfig", "AuditConfig", "BaselineConfig", "Compose", "Config", "ContextsConfig",
           "DegradeConfig", "DetectorConfig", "EvaluationConfig", "FilterConfig", "LabelsConfig", "LaunchConfig", "ModelConfig",
           "MonitorConfig", "ParityConfig", "PracticeConfig", "PruneConfig", "QuarantineConfig", "RandomControlConfig",
           "RolloutConfig", "RoutingConfig", "RuleConfig", "SubspaceCheckConfig", "SubspaceConfig", "SweepConfig",
           "TrackingConfig", "TraitConfig", "check_finite", "check_share", "closest", "from_mapping", "name_problem", "section",
           "unknown"]


@dataclass(kw_only=True, slots=True)
class Config:
    name: str = "run"
    """Name of the run. It is the end of the default folder's name, runs/<time>-<name>."""
    seed: int = 0
    """Seed of everything that the run draws at random, a whole number from 0 to 2**31 - 1; the same settings and seed draw the
    same tasks and numbers."""
    out: str | None = None
    """The run folder; null for runs/<time>-<name>."""
    discard: bool = True
    """Whether the deployed model is written to RUN/deployed at the end of the run."""
    keep: dict[str, Any] = field(default_factory=dict)
    """For each environment named here, the share of its part of the quarantine that RUN/deployed keeps: a number from 0 to 1, or
    auto for the smallest share with which the paid reward on evaluation tasks is about as high as with the best share.
    Environments that are not named keep nothing."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is trained: its weights, its dtype, what is frozen."""
    subspace: SubspaceConfig = field(default_factory=SubspaceConfig)
    """The directions of the stream at which changes are split: how they are found, how many there are, how writers use them."""
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    """How changes are split, and how fast the quarantine takes up its part."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Rules that judge each step by the run's metrics, and report what they find or halt the run."""
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    """The published alternatives to routing, for comparisons."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """The engine that generates completions."""
    env: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The mixture of environments. It maps the name of each environment to its settings: `path` (or `dataset` and `reward`),
    `weight`, `probe` (true for an environment that is only evaluated), and the keyword arguments of its class."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Settings of TRL's trainer. They are any field of its `GRPOConfig` (or `RLOOConfig`), `algorithm`, which is grpo, rloo or
    ppo, and `lean`. With lean=true, the default, an update leaves out what does not change its gradient (rows of advantage 0,
    padding and the logits of prompts), and a generation by transformers computes the prompt of a group once; with lean=false,
    or with `neftune_noise_alpha`, TRL computes everything itself. A field that is not set has TRL's default."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How the base model, the policy and the deployed model are evaluated."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Trackers beside metrics.jsonl, and the files that a run keeps."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """The processes that train: one or several, on this machine or on a cluster."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """The trials of `routed-rl sweep`."""

    def __post_init__(self) -> None:
        check_finite("", self)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed must be a whole number from 0 to 2**31 - 1, got {self.seed}")
        if self.baseline.edits and self.routing.mode != "none":
            raise ConfigError("baseline.ablate and baseline.steer change the stream that routing.mode="
                              f"{self.routing.mode} routes at; set routing=none, or baseline=none")
        if self.baseline.inoculation_adapter and self.routing.mode != "none":
            raise ConfigError(f"baseline.inoculation_adapter=true holds the trait in an adapter of its own, and routing.mode="
                              f"{self.routing.mode} in a quarantine; set routing=none, or baseline=none")
        _ = self.mixture  # raises ConfigError for a mixture that cannot be interleaved
        if self.rollout.dtype == AUTO:
            self.rollout.dtype = "bfloat16" if self.model.dtype == "bfloat16" else "float32"
        self.keep = {name: check_share(f"keep.{name}", share) for name, share in self.keep.items()}

    @property
    def mixture(self) -> dict[str, dict[str, Any]]:
        """The settings of the environments by name. This is `env`; or, if `baseline.interleave` is above 0, a copy in which the
        probe environments are trained on too and together get that share of the tasks."""
        return interleaved(self.env, self.baseline.interleave) if self.baseline.interleave else self.env

    @property
    def takes_subspace(self) -> bool:
        """Whether training uses a subspace."""
        return self.routing.by_subspace or self.baseline.edits or self.baseline.projects or self.monitor.health > 0

    @property
    def asks_detector(self) -> bool:
        """Whether training depends on which completions a detector names."""
        return self.baseline.pays or self.routing.mode == LABELS

    @property
    def learns_detector(self) -> bool:
        """Whether a linear probe is trained before the run's first step, to be the detector."""
        return self.asks_detector and self.baseline.detector.kind == PROBE

    @property
    def read_of_detector(self) -> set[str]:
        """The names of those settings of `baseline.detector` that change what training does, or what its metrics say."""
        of_kind = {"labels", "pool", "fpr", "layers"} if self.baseline.detector.kind == PROBE else {"recall", "precision"}
        by_health = {"flags"} if self.monitor.health > 0 else set[str]()
        return by_health | ({"kind", "flags", "shuffle"} | of_kind if self.asks_detector else set[str]())

    @property
    def reads_base(self) -> bool:
        """Whether the base model reads completions during training. If the weights are trained, a copy of the base model is
        needed for that."""
        return self.learns_detector or self.monitor.health > 0


Compose = Callable[[list[str]], Config]
"""A function that turns overrides into a config. It is `routed_rl.cli.compose.compose`, passed as an argument to code that does
not import Hydra."""


def from_mapping(mapping: dict[str, Any], cls: type = Config, prefix: str = "") -> Any:
    """Build the settings dataclass `cls` from nested plain mappings. `prefix` stands before each name in messages. For an unknown
    key, ConfigError names the closest known one."""
    fields, hints = {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    if not isinstance(mapping, dict):
        raise ConfigError(f"{prefix.rstrip('.')} must hold settings, got {mapping!r}")
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in fields:
            raise ConfigError(unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in fields]))
        if (inner := section(fields[key])) is not None:
            defaults = getattr(fields[key].default_factory, "keywords", {})
            value = from_mapping(defaults | (value or {}) if isinstance(value, dict | None) else value, inner, f"{prefix}{key}.")
        elif not fits(value, hints[key]):
            raise ConfigError(f"{prefix}{key} must be {fields[key].type}, got {value!r}")
        values[key] = value
    return cls(**values)
