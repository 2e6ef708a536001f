"""Many training runs of one experiment under different settings, and which were best."""

from routed_rl.sweep.space import Choice, Dimension, Interval
from routed_rl.sweep.verb import sweep

__all__ = ["Choice", "Dimension", "Interval", "sweep"]
