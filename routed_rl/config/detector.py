"""Settings of the detector, which says which completions are bad, for the arms that use labels."""

from dataclasses import dataclass, field

from routed_rl.config.checks import check_at_least, check_finite, check_known, check_shares
from routed_rl.errors import ConfigError

FLAGS, PROBE = DETECTORS = ("flags", "probe")
"""The kinds of a detector: it uses the environments' flags, or a linear probe on the base model's activations."""


@dataclass(kw_only=True, slots=True)
class DetectorConfig:
    kind: str = FLAGS
    """flags: the detector knows the environments' flags, and errs as often as `recall` and `precision` say. probe: the detector
    is a linear probe on the base model's activations, learned from a few labelled completions of that model."""
    flags: list[str] = field(default_factory=lambda: ["hack"])
    """Names of flags. A completion counts as bad if its score has any of them."""
    recall: float = 1.0
    """For kind=flags: share of the bad completions (those with one of `flags`) that the detector names."""
    precision: float = 1.0
    """For kind=flags: share of the completions named by the detector that are bad (that have one of `flags`)."""
    shuffle: bool = False
    """Whether the detector names random completions instead, in each generation as many as it would otherwise name; this is a
    control."""
    labels: float = 0.05
    """For kind=probe: how many completions are labelled. A value below 1 is a share of `pool`; a value of 1 or more is a number
    of completions."""
    pool: int = 4000
    """For kind=probe: number of completions that the base model writes. As many of them as `labels` says are labelled, and the
    linear probe is measured on the others."""
    fpr: float = 0.05
    """For kind=probe: share of the good completions (those with none of `flags`) that the linear probe may name (its
    false-positive rate)."""
    layers: list[int] | None = None
    """For kind=probe: the layers whose outputs are read, counted from 0. A completion is named only if it looks bad at all of
    them. null for the one layer that best tells the bad labelled completions from the others."""

    @property
    def labelled(self) -> int:
        """How many completions of the pool are labelled."""
        return min(int(self.labels) if self.labels >= 1 else max(round(self.labels * self.pool), 1), self.pool)

    def __post_init__(self) -> None:
        check_known("baseline.detector.kind", [self.kind], DETECTORS)
        check_shares("baseline.detector", self, "recall", "precision", "fpr")
        self._check_probe()
        if self.precision == 0 < self.recall:
            raise ConfigError("baseline.detector.precision=0 would name no marked completion at all, but recall="
                              f"{self.recall} asks for some; set baseline.detector.recall=0, or a precision above 0")
        if not self.flags:
            raise ConfigError("baseline.detector.flags is empty, so no completion would be marked; name a flag, such as [hack]")

    def _check_probe(self) -> None:
        check_at_least("baseline.detector", self, {"pool": 1})
        check_finite("baseline.detector.labels", self.labels)
        if self.labels <= 0 or self.labels > self.pool:
            raise ConfigError(f"baseline.detector.labels must be a share below 1 of the pool, or a number up to "
                              f"baseline.detector.pool={self.pool}, got {self.labels}")
        _check_layers("baseline.detector.layers", self.layers)
        if self.kind == PROBE and (self.recall, self.precision) != (1, 1):
            raise ConfigError(f"baseline.detector.recall={self.recall} and precision={self.precision} are of kind=flags: what a "
                              "probe finds is measured; leave them out, or set baseline.detector.fpr")


def check_probe_options(labels: float | None, layers: list[int] | None = None) -> None:
    """Check the options --labels and --layers of a command that learns a probe from a run's completions. How many completions and
    layers there are is not known yet."""
    if labels is not None:
        check_finite("--labels", labels)
        if labels <= 0:
            raise ConfigError(f"--labels must be a share of the completions above 0 and below 1, or their number, got {labels:g}")
    _check_layers("--layers", layers)


def _check_layers(name: str, layers: list[int] | None) -> None:
    if layers is not None and (not layers or min(layers) < 0 or len(set(layers)) < len(layers)):
        raise ConfigError(f"{name} must be layers that differ, counted from 0: [1,2], got {layers}")
