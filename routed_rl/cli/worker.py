"""`python -m routed_rl.cli.worker RUN`: one process of a launched run. The settings are in the folder, so Hydra has no part."""

from __future__ import annotations

import os
import sys

from routed_rl.cli import guarded
from routed_rl.stopping import PARENT, STOP, die_with


def main(folder: str) -> int:
    """Train with the other processes; returns the exit code."""
    die_with(int(os.environ[PARENT]))

    def work() -> None:
        from routed_rl import pipeline

        with STOP.listening():
            pipeline.work(folder)

    return guarded(work, ["resume", folder])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
