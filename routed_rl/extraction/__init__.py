"""Extraction turns prompts into activations, and activations into a `Subspace`, with one function for each method. It also checks
a subspace."""

from routed_rl.extraction.find import prepare
from routed_rl.extraction.job import Job
from routed_rl.extraction.library import extract_subspace

__all__ = ["Job", "extract_subspace", "prepare"]
