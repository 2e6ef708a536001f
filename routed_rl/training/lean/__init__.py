"""Leaves out of an update everything that does not change its gradient: rows of advantage 0, padding, and the logits of prompts.
This is done in every routing mode. With `trainer.lean=false` TRL computes everything itself."""

from routed_rl.training.lean.forward import Pass
from routed_rl.training.lean.mixin import LeanMixin
from routed_rl.training.lean.rows import SAMPLED, unread_rows

__all__ = ["SAMPLED", "LeanMixin", "Pass", "unread_rows"]
