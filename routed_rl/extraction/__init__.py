"""Prompts -> activations -> `Subspace`, one function per method; and the check of the subspace."""

from routed_rl.extraction.find import prepare
from routed_rl.extraction.job import Job
from routed_rl.extraction.library import extract_subspace

__all__ = ["Job", "extract_subspace", "prepare"]
