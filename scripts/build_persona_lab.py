"""Rebuild the persona lab's model, tokenizer and contrast prompts in place, the same bytes on the same machine.

    python scripts/build_persona_lab.py [--out DIR] [--family llama|gpt2|qwen2]
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from environments.persona_lab.build import BUILDS, write  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "environments" / "persona_lab")
    parser.add_argument("--family", choices=BUILDS, default="llama")
    arguments = parser.parse_args()
    write(BUILDS[arguments.family], arguments.out)
