"""Looking before a run: the environments there are, whether they are sound, and whether this machine is ready. No torch
until a model's tokenizer is asked for."""

from routed_rl.inspection.environments import check_environments, list_environments, try_environments
from routed_rl.inspection.machine import doctor

__all__ = ["check_environments", "doctor", "list_environments", "try_environments"]
