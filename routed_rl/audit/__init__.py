"""The leak audit: it measures which module groups of the retained change carry the shift and the hack, and where the stream
moved."""

from routed_rl.audit.verb import audit

__all__ = ["audit"]
