"""An environment in a process of its own: the trainer holds `process`, and `worker` is the program in the process."""
