"""Gradient routing by labels: flagged rows are learned by a quarantine, which has its own basis, instead of by the model."""

from routed_rl.routing.labels.adapter import LabelAdapter
from routed_rl.routing.labels.gate import Gates, LabelSite, label_module
from routed_rl.routing.labels.router import LabelQuarantine, LabelRouter, positions_of

__all__ = ["Gates", "LabelAdapter", "LabelQuarantine", "LabelRouter", "LabelSite", "label_module", "positions_of"]
