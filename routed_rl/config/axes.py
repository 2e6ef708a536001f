"""Axes that nobody has named: factors of the model's response to a push (dct), and vectors trained on preferences (dpo, bipo)."""

from dataclasses import dataclass

from routed_rl.config.checks import check_at_least, check_known
from routed_rl.errors import ConfigError

CHOICES = ("target", "answers", "environments")


@dataclass(kw_only=True, slots=True)
class AxesConfig:
    """The settings of `SubspaceConfig` that only dct, dpo and bipo read."""

    form: str = "exponential"
    """For method=dct: what the factors maximise. exponential: the response to a push of the calibrated radius; linear: its
    derivative where nothing is pushed."""
    factors: int = 32
    """For method=dct: number of directions that are found."""
    keep: int = 8
    """For method=dct: number of factors that become axes."""
    iterations: int = 10
    """For method=dct: number of iterations in which the factors are found."""
    source: int | None = None
    """For method=dct: the layer whose output is pushed; null for a quarter of the way up."""
    until: int | None = None
    """For method=dct: the layer at whose output the response is measured; null for a quarter of the way from the top."""
    radius: float | None = None
    """For method=dct: length of the push. null: calibrated by `nonlinearity`, and a quarter of the stream's length for
    form=linear."""
    nonlinearity: float = 0.5
    """For method=dct with form=exponential: the push is as long as it takes for the response to depart from its linear part by
    this share of that part."""
    plain_prompts: str | None = None
    """For method=dct: file of ordinary prompts, JSON lines of {"prompt": ...}; null for the prompts of the preference pairs, or
    without those the negative contrast prompts."""
    plain: int = 16
    """For method=dct: largest number of ordinary prompts that are used, spread over their file."""
    choose: str = "target"
    """For method=dct: how the factors that become axes are chosen. target: by what their span holds of `target`; environments: by
    how a push changes what the environments flag; answers: by how it changes the likelihood of answers."""
    target: str = "mean_difference"
    """For method=dct with choose=target: mean_difference, or the folder of another subspace, whose first axis is the target."""
    screen_samples: int = 64
    """For method=dct with choose=environments: number of tasks of each environment, for each factor and either sign."""
    pairs: str | None = None
    """For methods dpo and bipo, and for dct with choose=answers: file of preference pairs, JSON lines of {"prompt", "positive",
    "negative"} or {"prompt", "rejected", "chosen"}; positive and rejected are what must not grow. null for the lines of `answers`
    that the causal check does not use."""
    epochs: int = 20
    """For methods dpo and bipo: number of passes over the pairs."""
    pair_batch: int = 4
    """For methods dpo and bipo: number of pairs of a step."""
    rate: float = 0.01
    """For methods dpo and bipo: size of the first step in units of the stream's root mean square at the layer; later steps fall
    to 0 along a cosine."""
    beta: float = 0.1
    """For methods dpo and bipo: factor of the log-probability ratios in the loss."""

    def check_axes(self) -> None:
        """ConfigError for a value that makes no sense for any model."""
        check_known("subspace.form", [self.form], ("exponential", "linear"))
        check_known("subspace.choose", [self.choose], CHOICES)
        check_at_least("subspace", self, {"factors": 1, "keep": 1, "iterations": 1, "plain": 1, "screen_samples": 1, "epochs": 1,
                                           "pair_batch": 1})
        for key in ("nonlinearity", "rate", "beta", "radius"):
            if (value := getattr(self, key)) is not None and not value > 0:
                raise ConfigError(f"subspace.{key} must be above 0, got {value}")
        for key in ("source", "until"):
            if (value := getattr(self, key)) is not None and value < 0:
                raise ConfigError(f"subspace.{key} must be a whole number >= 0 or null, got {value}")
        if self.keep > self.factors:
            raise ConfigError(f"subspace.keep={self.keep} axes cannot be chosen from subspace.factors={self.factors}; lower keep")
