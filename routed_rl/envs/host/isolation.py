"""The setting `env.NAME.isolate`: true, false, or settings of the process in which an environment runs."""

import dataclasses
import shutil
from dataclasses import dataclass
from typing import Any

from routed_rl.config import check_finite
from routed_rl.errors import ConfigError

LIMIT = "ROUTED_RL_TIMEOUT_S"
"""The environment variable that tells an environment in a process of its own how many seconds scoring may take."""


@dataclass(frozen=True)
class Isolation:
    """Settings of the process in which an environment runs."""

    workers: int = 1
    """How many processes of this environment score at the same time."""
    timeout_s: float = 60.0
    """Seconds that one scoring may take. After that the process that scores is killed, and the completion counts as failed."""
    python: str | None = None
    """Path of another interpreter (3.11 or newer), for libraries that clash; null for the interpreter of the trainer. The other
    interpreter can import `routed_rl`, which need not be installed there."""
    show_output: bool = False
    """Whether the output of the environment is shown on stderr."""
    start_s: float = 1800.0
    """Seconds that a process may take to import and build the environment. After that it is killed, and the environment is given
    up."""

    @classmethod
    def parse(cls, name: str, value: Any) -> "Isolation | None":
        """Parse the setting `value` of the environment `name`. Returns None if the environment gets no process of its own."""
        if isinstance(value, bool):
            return cls() if value else None
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in value if key not in known] if isinstance(value, dict) else []
        if not isinstance(value, dict) or unknown:
            got = f"the unknown key {unknown[0]}" if unknown else value
            raise ConfigError(f"env.{name}.isolate must be true, false, or settings among {', '.join(known)}, got {got}")
        chosen = cls(**value)
        if type(chosen.workers) is not int or chosen.workers < 1:
            raise ConfigError(f"env.{name}.isolate.workers must be a number >= 1, got {chosen.workers}")
        for key in ("timeout_s", "start_s"):
            seconds = getattr(chosen, key)
            check_finite(f"env.{name}.isolate.{key}", seconds)
            if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds > 0:
                raise ConfigError(f"env.{name}.isolate.{key} must be a number > 0, got {seconds}")
        if not isinstance(chosen.show_output, bool):
            raise ConfigError(f"env.{name}.isolate.show_output must be true or false, got {chosen.show_output}")
        if chosen.python is not None and shutil.which(str(chosen.python)) is None:
            raise ConfigError(f"env.{name}.isolate.python={chosen.python} is no program; give the path of a Python interpreter")
        return chosen
