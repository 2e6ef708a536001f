"""Checks before a run: which environments there are, whether they are sound, and whether this machine is ready. torch is not
imported until a model's tokenizer is needed."""

from routed_rl.inspection.environments import check_environments, list_environments, try_environments
from routed_rl.inspection.machine import doctor

__all__ = ["check_environments", "doctor", "list_environments", "try_environments"]
