"""Starts a run's processes, on this machine or as a SLURM job. It knows no model and no trainer."""
