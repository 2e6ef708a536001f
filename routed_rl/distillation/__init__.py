"""A copy of a run's deployed model that is harder to turn back: noised, then taught by the deployed model what that does."""

from routed_rl.distillation.verb import robustify

__all__ = ["robustify"]
