"""Starting a run's processes, here or as a SLURM job. It knows no model and no trainer."""

from routed_rl.launching.processes import run_processes

__all__ = ["run_processes"]
