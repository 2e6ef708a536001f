"""What the processes of a run agree on before they train."""

from __future__ import annotations

import zlib
from typing import Any

from torch import nn

from routed_rl.errors import ConfigError
from routed_rl.ranks import RANKS


def say_what_is_used(model: nn.Module, arguments: Any) -> None:
    """Spare DDP its search for parameters without gradient: only a mixture has some, experts that no token chose."""
    if arguments.ddp_find_unused_parameters is None and not any(hasattr(module, "experts") for module in model.modules()):
        arguments.ddp_find_unused_parameters = False


def check_alike(environments: list[str]) -> None:
    """The ids of environments go over the wire as places in this list, so it must be the same in every process."""
    marks = RANKS.gather(zlib.crc32("/".join(environments).encode()))
    if len(set(marks)) > 1:
        raise ConfigError(f"the processes of this run train different environments, this one {', '.join(environments)}; give all "
                          "of them the same plug-ins and run folder")
