"""Settings of the methods that find axes without names. dct finds directions along which a vector that is added to the stream
changes later layers most, and takes some of them as axes. dpo and bipo train vectors on preferences."""

from dataclasses import dataclass

from routed_rl.config.checks import check_at_least, check_known
from routed_rl.errors import ConfigError

CHOICES = ("target", "answers", "environments")


@dataclass(kw_only=True, slots=True)
class AxesConfig:
    """The settings of `SubspaceConfig` that only dct, dpo and bipo read."""

    form: str = "exponential"
    """For method=dct: the quantity that the found directions (`factors`) maximise. exponential: the model's response to an added
    vector of length `radius`; linear: the derivative of the response with respect to the vector's length, at length 0."""
    factors: int = 32
    """For method=dct: number of directions (factors) that are found."""
    keep: int = 8
    """For method=dct: number of the found directions (`factors`) that become axes."""
    iterations: int = 10
    """For method=dct: number of iterations of the search for directions (`factors`)."""
    source: int | None = None
    """For method=dct: the layer to whose output vectors are added, counted from 0; null for the layer a quarter of the way up."""
    until: int | None = None
    """For method=dct: the layer at whose output the response is measured, counted from 0; null for the layer a quarter of the way
    down from the top."""
    radius: float | None = None
    """For method=dct: length of the added vector, in the stream's own units. null: with form=exponential the length that
    `nonlinearity` asks for, with form=linear a quarter of the stream's length."""
    nonlinearity: float = 0.5
    """For method=dct with form=exponential and radius=null: share by which the response must depart from its linear part. The
    added vector gets the smallest length at which the response departs by this share."""
    plain_prompts: str | None = None
    """For method=dct: file of ordinary prompts, JSON lines of {"prompt": ...}; null for the prompts of the preference pairs, or,
    if there are no pairs, the negative contrast prompts."""
    plain: int = 16
    """For method=dct: largest number of ordinary prompts (`plain_prompts`) that are used. They are taken from their file at even
    distances."""
    choose: str = "target"
    """For method=dct: how the directions (`factors`) that become axes are chosen. target: those whose span holds the most of the
    axis named by `target`; environments: those that, added to the stream, change most how often the environments flag
    completions; answers: those that, added to the stream, change most how much likelier the positive answers of `pairs` are than
    the negative ones."""
    target: str = "mean_difference"
    """For method=dct with choose=target: the axis with which the found directions (`factors`) are compared. It is the first axis
    of the subspace that mean_difference finds, or, if a folder is given, the first axis of the subspace in that folder."""
    screen_samples: int = 64
    """For method=dct with choose=environments: number of tasks of each environment on which each found direction is tried, once
    added to the stream and once subtracted from it."""
    pairs: str | None = None
    """For methods dpo and bipo, and for dct with choose=answers: file of preference pairs, JSON lines of {"prompt", "positive",
    "negative"} or {"prompt", "rejected", "chosen"}; positive and rejected are what must not grow. null for the lines of `answers`
    that the causal check does not use."""
    epochs: int = 20
    """For methods dpo and bipo: number of passes over the pairs."""
    pair_batch: int = 4
    """For methods dpo and bipo: number of pairs in an optimizer step."""
    rate: float = 0.01
    """For methods dpo and bipo: size of the first step in units of the stream's root mean square at the layer; later steps fall
    to 0 along a cosine."""
    beta: float = 0.1
    """For methods dpo and bipo: factor by which the log-probability ratios in the loss are multiplied (beta of DPO)."""

    def check_axes(self) -> None:
        """Raise ConfigError for a value that is not possible with any model."""
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
