"""Makes a copy of a run's deployed model that resists relearning: noise is added to its weights, then the deployed model teaches
it."""

from routed_rl.distillation.verb import robustify

__all__ = ["robustify"]
