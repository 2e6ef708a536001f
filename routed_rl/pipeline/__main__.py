"""`python -m routed_rl.pipeline ROLE RUN [URL ...]`: a process of a launched run, whose rollouts come from the URLs. The
settings are in the folder: the command line has no part in it."""

import os
import sys

from routed_rl.exits import guarded
from routed_rl.guard import die_with
from routed_rl.pipeline import run_job, run_node, work
from routed_rl.stopping import PARENT, STOP

ROLES = {"process": work, "node": run_node, "job": run_job}
"""One of the processes that train; what starts them on a node of a SLURM job; the job."""


def main(role: str, folder: str, *urls: str) -> int:
    """Do what `role` is for; returns the exit code."""
    if PARENT in os.environ:
        die_with(int(os.environ[PARENT]))

    def run() -> None:
        with STOP.listening():
            ROLES[role](folder, *urls)

    return guarded(run, ["resume", folder])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
