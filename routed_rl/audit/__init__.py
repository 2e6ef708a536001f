"""The leak audit. It measures how much of the persona shift and of each environment's metrics every group of modules in the
retained change carries, and at which layers the retained change moved the stream."""

from routed_rl.audit.verb import audit

__all__ = ["audit"]
