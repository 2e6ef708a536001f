"""Starting a run's processes, here or as a SLURM job. It knows no model and no trainer."""

from routed_rl.launching.processes import run_processes, wait_for
from routed_rl.launching.slurm import node_command, submit, write_job

__all__ = ["node_command", "run_processes", "submit", "wait_for", "write_job"]
