"""`python -m routed_rl.cli` is `routed-rl`."""

import sys

from routed_rl.cli import main

sys.exit(main())
