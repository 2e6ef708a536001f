"""Prompts -> activations -> `Subspace`, one function per method; and whether what was found is any good."""

from routed_rl.extraction.find import prepare
from routed_rl.extraction.job import Job

__all__ = ["Job", "prepare"]
