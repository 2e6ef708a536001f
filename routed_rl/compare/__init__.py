"""Arms side by side: the same experiment under several settings, paired by seed, with intervals over the seeds."""

from routed_rl.compare.verb import compare

__all__ = ["compare"]
