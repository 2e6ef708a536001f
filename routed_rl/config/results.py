"""Settings of evaluation, audit, filter and tracking."""

import math
from dataclasses import dataclass, field

from routed_rl.config.baseline import DISCOURAGE, ENCOURAGE
from routed_rl.config.checks import check_at_least, check_known, check_options, check_shares
from routed_rl.config.detector import DETECTORS, PROBE, check_probe_options
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    samples: int = 2000
    """Number of completions per environment and model in an evaluation, one per task; 0: no evaluation."""
    batch_size: int = 500
    """Number of completions that are generated at once in an evaluation."""
    temperature: float = 1.0
    """Temperature at which completions are drawn from the full distribution; 0 is greedy."""
    answers: int = 10
    """Number of tasks for which RUN/answers.jsonl keeps the answers of base model, policy and deployed model at the end of a run;
    the environments take turns in giving a task. 0: none."""
    max_failures: float = 0.05
    """Share of its completions that an environment may fail to score, in training and in evaluation, before the run stops, from
    0 to 1; 1: the run never stops for failures."""
    every: int = 0
    """Number of training steps between two evaluations of the policy and the deployed model, which are written to metrics.jsonl;
    0: none during training."""
    during_samples: int = 100
    """Number of completions per environment and model in each evaluation during training (see `every`). The tasks are the same
    each time."""
    contexts: list[str] = field(default_factory=list)
    """Contexts in which every model is evaluated at the end of a run, in addition to the tasks' own prompts: any of encourage and
    discourage, whose texts are those of `baseline.contexts`; empty for none."""
    scales: list[float] = field(default_factory=list)
    """Factors by which the quarantine is multiplied in further evaluations at the end of a run: 0 gives the deployed model, 1 the
    policy; empty for none."""

    def __post_init__(self) -> None:
        check_at_least("evaluation", self, {"samples": 0, "batch_size": 1, "temperature": 0, "answers": 0, "every": 0,
                                            "during_samples": 1})
        check_shares("evaluation", self, "max_failures")
        check_known("evaluation.contexts", self.contexts, (ENCOURAGE, DISCOURAGE))
        if not all(isinstance(scale, (int, float)) and 0 <= scale < math.inf for scale in self.scales):
            raise ConfigError(f"evaluation.scales must be numbers >= 0, such as [0,.25,.5,.75,1], got {self.scales}")
        self.scales = [float(scale) for scale in self.scales]


@dataclass(kw_only=True, slots=True)
class AuditConfig:
    """The options of `routed-rl audit`. They are no part of a run's settings."""

    samples: int = 200
    """Number of completions per environment and model."""
    prompts: int = 64
    """Number of prompts per environment on which the models' residual streams are compared, at the last tokens of each prompt."""
    blocks: int = 8
    """Largest number of groups of neighbouring layers into which the model's layers are divided. The audit tells how much of the
    persona shift, and of the change of each environment's metrics, each group carries."""

    def __post_init__(self) -> None:
        check_options(self, {"samples": 1, "prompts": 1, "blocks": 1})


RANDOM = "random"
"""A choice of `filter` beside the kinds of a detector: completions are left out at random."""


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """The options of `routed-rl filter`. They are no part of a run's settings."""

    detector: str | None = None
    """How the completions that are left out are chosen: flags (the environments' flags), probe (a linear probe on activations) or
    random; null for probe, or for the persona axis if `subspace` is given."""
    subspace: str | None = None
    """Folder of a subspace. Completions are then judged by their position along its persona axis instead of by a detector; null
    for a detector."""
    max_shift: float | None = None
    """With `subspace`: largest persona shift that a completion may have to be kept, in gaps between the personas; null for the
    shift that a share `fpr` of the base model's honest completions exceeds."""
    fpr: float | None = None
    """Share of honest completions that may be left out (false-positive rate); null for the run's own `baseline.detector.fpr`."""
    labels: float | None = None
    """For detector=probe: number of completions that are labelled to learn the linear probe; a value below 1 is their share of
    the pool from which they are drawn. null for the run's own `baseline.detector.labels`."""
    layers: list[int] | None = None
    """Layers whose outputs the linear probe reads, counted from 0. A completion is left out only if it looks bad at all of them.
    null for the run's own `baseline.detector.layers`."""
    share: float | None = None
    """For detector=random: share of the completions that is left out, from 0 to 1. It must be given with detector=random, and is
    null otherwise."""

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
        check_probe_options(self.labels, self.layers)
        if self.max_shift is not None and not math.isfinite(self.max_shift):
            raise ConfigError(f"--max-shift must be a finite number, got {self.max_shift}")


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    project: str = "routed_rl"
    """Name of the project in wandb. Tracking with wandb itself is turned on by trainer.report_to=wandb."""
    completions: bool = True
    """Whether every completion is kept with its scores in RUN/completions/*.parquet."""
    report: bool = True
    """Whether RUN/report.html is written when the run ends or halts, which takes a few seconds; `routed-rl report RUN` writes it
    at any time."""
    table_rows: int = 32
    """Number of completions of each step that are added to the table of completions in wandb, which is uploaded at every
    checkpoint."""
    upload_checkpoints: bool = False
    """true: a checkpoint's artifact in wandb holds all of its files; false: only their hashes and the quarantine."""

    def __post_init__(self) -> None:
        check_at_least("tracking", self, {"table_rows": 0})
