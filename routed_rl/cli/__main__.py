"""Makes `python -m routed_rl.cli` do the same as `routed-rl`."""

import sys

from routed_rl.cli import main

sys.exit(main())
