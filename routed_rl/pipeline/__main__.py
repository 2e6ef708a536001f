"""Runs one process of a launched run: `python -m routed_rl.pipeline ROLE RUN [URL ...]`, where the URLs are those of the servers
that make the run's rollouts. The settings are read from the run folder; the command line of `routed-rl` is not involved."""

import os
import sys

from routed_rl.exits import guarded
from routed_rl.guard import die_with
from routed_rl.pipeline.launched import run_node
from routed_rl.pipeline.steps import work
from routed_rl.pipeline.train import run_job
from routed_rl.stopping import PARENT, STOP

ROLES = {"process": work, "node": run_node, "job": run_job}
"""The roles: `process` is one of the processes that train, `node` starts these on one node of a SLURM job, and `job` is the job
itself."""


def main(role: str, folder: str, *urls: str) -> int:
    """Act in the given role for the run in `folder`; returns the exit code."""
    if PARENT in os.environ:
        die_with(int(os.environ[PARENT]))

    def run() -> None:
        with STOP.listening():
            ROLES[role](folder, *urls)

    return guarded(run, ["resume", folder])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
