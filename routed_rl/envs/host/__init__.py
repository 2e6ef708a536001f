"""Runs an environment in a process of its own: `process` is the trainer's side, and `worker` is the program in the process."""
