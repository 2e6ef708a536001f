"""`python -m routed_rl.cli.worker ROLE RUN [URL ...]`: a process of a launched run, whose rollouts come from the URLs. The
settings are in the folder: Hydra has no part."""

from __future__ import annotations

import os
import sys

from routed_rl.cli import guarded
from routed_rl.stopping import PARENT, STOP, die_with

ROLES = {"process": "work", "node": "run_node", "job": "run_job"}
"""One of the processes that train; what starts them on a node of a SLURM job; the job. Each is a function of the pipeline."""


def main(role: str, folder: str, *urls: str) -> int:
    """Do what `role` is for; returns the exit code."""
    if PARENT in os.environ:
        die_with(int(os.environ[PARENT]))

    def work() -> None:
        from routed_rl import pipeline

        with STOP.listening():
            getattr(pipeline, ROLES[role])(folder, *urls)

    return guarded(work, ["resume", folder])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
