"""Writes the model card of each folder that users publish: README.md, with YAML for the Hugging Face hub."""

from routed_rl.report.card.facts import DEPLOYED, POLICY, QUARANTINE, STUDENT, Leaving, hub_name
from routed_rl.report.card.page import write_card
from routed_rl.report.card.robust import without_paths
from routed_rl.report.card.training import base_told
from routed_rl.report.card.use import is_beside, step_told
from routed_rl.report.differences import Results

__all__ = ["DEPLOYED", "POLICY", "QUARANTINE", "STUDENT", "Leaving", "Results", "base_told", "hub_name", "is_beside", "step_told",
           "without_paths", "write_card"]
