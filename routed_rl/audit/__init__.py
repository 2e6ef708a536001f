"""The leak audit of a run's retained change, which is the part of the change that the deployed model has. For each group of
modules it measures how much of the persona shift, and of the change of each environment's metrics, the group carries. For each
layer it measures how far the retained change moved the stream."""

from routed_rl.audit.verb import audit

__all__ = ["audit"]
