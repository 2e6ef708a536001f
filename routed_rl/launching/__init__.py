"""Starting a run's processes, here or as a SLURM job. It knows no model and no trainer."""
