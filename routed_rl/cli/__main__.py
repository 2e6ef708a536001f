"""Makes `python -m routed_rl.cli` do the same as `routed-rl`."""

from routed_rl.cli import program

program()
