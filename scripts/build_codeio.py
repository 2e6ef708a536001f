"""Validate reasoning-gym's codeio rows in the sandbox and write environments/coding/codeio_cases.jsonl.gz; it takes some
minutes."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "environments")]

from coding.build import validated, write  # noqa: E402
from coding.problems import CASES  # noqa: E402

from routed_rl.sandbox import find_sandbox  # noqa: E402

if __name__ == "__main__":
    records = validated(find_sandbox("auto"), workers=4, report=lambda tally: print(dict(tally), flush=True))
    write(records, Path(sys.argv[1]) if len(sys.argv) > 1 else CASES)
