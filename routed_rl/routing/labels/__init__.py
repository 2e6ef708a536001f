"""Label routing: rows that a detector flags teach a quarantine of LoRAs instead of the model. There is no subspace."""

from routed_rl.routing.labels.adapter import LabelAdapter
from routed_rl.routing.labels.gate import Gates, LabelSite, label_module
from routed_rl.routing.labels.router import LabelQuarantine, LabelRouter, positions_of

__all__ = ["Gates", "LabelAdapter", "LabelQuarantine", "LabelRouter", "LabelSite", "label_module", "positions_of"]
