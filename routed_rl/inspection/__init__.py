"""Checks before a run: which environments there are, whether they are sound, and whether this machine is ready. torch is imported
only when a model's tokenizer is needed."""

from routed_rl.inspection.environments import check_environments, list_environments, try_environments
from routed_rl.inspection.machine import doctor
from routed_rl.inspection.new import write_new
from routed_rl.inspection.settings import show as show_settings

__all__ = ["check_environments", "doctor", "list_environments", "show_settings", "try_environments", "write_new"]
