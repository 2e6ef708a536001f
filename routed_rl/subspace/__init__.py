"""Finds, stores and judges subspaces: the frozen class `Subspace`, the methods that compute one, and measures of its quality."""

from routed_rl.subspace.artifact import Provenance, Subspace
from routed_rl.subspace.degrade import degrade
from routed_rl.subspace.methods import METHODS, Size, find
from routed_rl.subspace.quality import check_quality, describe_quality, measure_quality
from routed_rl.subspace.samples import Samples

__all__ = ["METHODS", "Provenance", "Samples", "Size", "Subspace", "check_quality", "degrade", "describe_quality", "find",
           "measure_quality"]
