"""Rebuild the persona lab's model, tokenizer and contrast prompts in place, the same bytes on the same machine."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from environments.persona_lab.build import Build, write  # noqa: E402

if __name__ == "__main__":
    write(Build(), Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "environments" / "persona_lab")
