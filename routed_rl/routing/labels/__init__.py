"""Gradient routing by labels: a quarantine with a basis of its own, which learns from flagged rows instead of the model."""

from routed_rl.routing.labels.adapter import LabelAdapter
from routed_rl.routing.labels.gate import Gates, LabelSite, label_module
from routed_rl.routing.labels.router import LabelQuarantine, LabelRouter, positions_of

__all__ = ["Gates", "LabelAdapter", "LabelQuarantine", "LabelRouter", "LabelSite", "label_module", "positions_of"]
