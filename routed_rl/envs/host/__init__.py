"""An environment in a process of its own: `process` is what the trainer holds, `worker` the program in the process."""
