"""Makes subspaces: turns prompts into activations and activations into a `Subspace`, with one function for each method. Also
checks whether a subspace is a good one."""

from routed_rl.extraction.find import prepare
from routed_rl.extraction.job import Job
from routed_rl.extraction.library import extract_subspace
from routed_rl.extraction.names import axis_names

__all__ = ["Job", "axis_names", "extract_subspace", "prepare"]
