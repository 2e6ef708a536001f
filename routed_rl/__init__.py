"""RL fine-tuning that keeps a change of persona in a quarantine that can be discarded.

The names in `__all__` are the API of the library, which docs/library.md describes. A name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routed_rl.config import (
        MonitorConfig,
        PracticeConfig,
        QuarantineConfig,
        RandomControlConfig,
        RoutingConfig,
        RuleConfig,
        SubspaceConfig,
    )
    from routed_rl.errors import RoutedRLError
    from routed_rl.extraction import extract_subspace
    from routed_rl.monitor import Blame, Verdict
    from routed_rl.routing import Quarantine
    from routed_rl.subspace import Subspace
    from routed_rl.training.library import RoutedGRPOTrainer, RoutedRLOOTrainer

__version__ = "0.1.0"

__all__ = ["Blame", "MonitorConfig", "PracticeConfig", "Quarantine", "QuarantineConfig", "RandomControlConfig",
           "RoutedGRPOTrainer", "RoutedRLError", "RoutedRLOOTrainer", "RoutingConfig", "RuleConfig", "Subspace",
           "SubspaceConfig", "Verdict", "extract_subspace"]

_HOMES = {"routed_rl.config": ("MonitorConfig", "PracticeConfig", "QuarantineConfig", "RandomControlConfig", "RoutingConfig",
                               "RuleConfig", "SubspaceConfig"),
          "routed_rl.errors": ("RoutedRLError",), "routed_rl.extraction": ("extract_subspace",),
          "routed_rl.monitor": ("Blame", "Verdict"), "routed_rl.routing": ("Quarantine",), "routed_rl.subspace": ("Subspace",),
          "routed_rl.training.library": ("RoutedGRPOTrainer", "RoutedRLOOTrainer")}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
