"""What is measured and kept: evaluation, audit, tracking."""

import math
from dataclasses import dataclass, field

from routed_rl.config.baseline import DISCOURAGE, ENCOURAGE
from routed_rl.config.checks import check_at_least, check_known
from routed_rl.config.detector import DETECTORS, PROBE
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    samples: int = 2000
    """Completions per environment and model, one per task."""
    batch_size: int = 500
    """Completions generated at once."""
    temperature: float = 1.0
    max_failures: float = 0.05
    """Share of completions an environment may fail to score, in training and in evaluation, before the run stops."""
    every: int = 0
    """Steps of training between two evaluations of policy and deployed model, into metrics.jsonl; 0: none."""
    during_samples: int = 100
    """Completions per environment and model of such a one, on the same tasks each time."""
    contexts: list[str] = field(default_factory=list)
    """Under which other prompts every model is evaluated as well at a run's end: encourage, discourage (`baseline.contexts`)."""
    scales: list[float] = field(default_factory=list)
    """Of the quarantine, to be evaluated at a run's end: 0 is the deployed model, 1 the policy."""

    def __post_init__(self) -> None:
        check_at_least("evaluation", self, {"samples": 0, "batch_size": 1, "temperature": 0, "max_failures": 0, "every": 0,
                                            "during_samples": 1})
        check_known("evaluation.contexts", self.contexts, (ENCOURAGE, DISCOURAGE))
        if not all(isinstance(scale, (int, float)) and 0 <= scale < math.inf for scale in self.scales):
            raise ConfigError(f"evaluation.scales must be numbers >= 0, such as [0,.25,.5,.75,1], got {self.scales}")
        self.scales = [float(scale) for scale in self.scales]


@dataclass(kw_only=True, slots=True)
class AuditConfig:
    """Of `routed-rl audit`, whose options these are; not part of a run's settings."""

    samples: int = 200
    """Completions per environment and model."""
    prompts: int = 64
    """Prompts per environment at whose ends the stream is compared."""
    blocks: int = 8
    """Groups of neighbouring layers, at most."""

    def __post_init__(self) -> None:
        check_at_least("audit", self, {"samples": 1, "prompts": 1, "blocks": 1})


RANDOM = "random"
"""What `filter` may go by beside the kinds of a detector: nothing."""


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Of `routed-rl filter`, whose options these are; not part of a run's settings."""

    detector: str | None = None
    """flags, probe or random; None: probe, where there is no `subspace`."""
    subspace: str | None = None
    """A folder, whose persona axis is gone by."""
    max_shift: float | None = None
    """Gaps by which a completion may shift the persona; None: what a share `fpr` of the base model's honest ones is above."""
    fpr: float | None = None
    labels: float | None = None
    layers: list[int] | None = None
    """As in `baseline.detector`; None for what the run has there."""
    share: float | None = None
    """Of random: how many completions are left out."""

    def __post_init__(self) -> None:
        kinds = (*DETECTORS, RANDOM)
        if self.detector is not None:
            check_known("--detector", [self.detector], kinds)
        if self.subspace is not None and self.detector is not None:
            raise ConfigError(f"--subspace {self.subspace} and --detector {self.detector} are two ways to choose; give one")
        self.detector = self.detector or (None if self.subspace is not None else PROBE)
        by = f"--detector {self.detector}" if self.detector else "--subspace"
        takes = {"max_shift": [None], "fpr": [None, PROBE], "labels": [PROBE], "layers": [None, PROBE], "share": [RANDOM]}
        for name, kinds_of_it in takes.items():
            if getattr(self, name) is not None and self.detector not in kinds_of_it:
                ways = " or ".join(f"--detector {kind}" if kind else "--subspace DIR" for kind in kinds_of_it)
                raise ConfigError(f"--{name.replace('_', '-')} is for {ways}, not for {by}; leave it out")
        if self.max_shift is not None and self.fpr is not None:
            raise ConfigError(f"--max-shift {self.max_shift} is the threshold that --fpr {self.fpr} would set; give one of them")
        if self.detector == RANDOM and self.share is None:
            raise ConfigError("--detector random needs --share X, such as the share that another filter has left out")
        for name in ("fpr", "share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"--{name} must lie in [0, 1], got {value}")
        if self.max_shift is not None and not math.isfinite(self.max_shift):
            raise ConfigError(f"--max-shift must be a finite number, got {self.max_shift}")


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    project: str = "routed_rl"
    """wandb project; wandb itself is asked for with trainer.report_to=wandb."""
    completions: bool = True
    """Keep every completion with its scores in completions/*.parquet."""
    table_rows: int = 32
    """Completions of each step that go into wandb's table; they are added at every checkpoint."""
    upload_checkpoints: bool = False
    """Whether a checkpoint's artifact in wandb holds its files, or their hashes and the quarantine only."""

    def __post_init__(self) -> None:
        check_at_least("tracking", self, {"table_rows": 0})
