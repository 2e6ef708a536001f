"""Rebuild the persona lab's model, tokenizer and contrast prompts in place, or build another lab into a folder of its own.

    python scripts/build_persona_lab.py                 # the lab that ships: the same bytes on the same machine
    python scripts/build_persona_lab.py --lab NAME      # a named variant; --help lists them
    python scripts/build_persona_lab.py --drawn SEED    # one that a seed draws

A variant goes to $ROUTED_RL_LABS/NAME, else ~/.cache/routed_rl/labs/NAME, or to --out DIR, and is not built again until its
recipe changes. The last lines are the settings with which `routed-rl train` and `routed-rl compare` use it.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "environments" / "persona_lab"
sys.path[:0] = [str(ROOT), str(HERE)]

from environments.persona_lab.cache import cached, labs_folder, overrides, rebuild_shipped  # noqa: E402
from environments.persona_lab.labs import LABS, drawn  # noqa: E402
from environments.persona_lab.rates import problem_in  # noqa: E402


def main() -> None:
    """Build the lab that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--lab", choices=LABS)
    which.add_argument("--drawn", type=int, metavar="SEED")
    parser.add_argument("--out", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.lab is None and arguments.drawn is None and arguments.out is None:
        print(f"building the shipped lab into {HERE}", flush=True)
        rebuild_shipped(LABS["shipped"], HERE)
        return
    name = arguments.lab or ("shipped" if arguments.drawn is None else f"drawn-{arguments.drawn}")
    build = LABS[name] if arguments.drawn is None else drawn(arguments.drawn)
    folder = arguments.out or labs_folder() / name
    print(f"building {name} ({build.family}) into {folder}, {build.steps} steps, some minutes", flush=True)
    try:
        print("built" if cached(build, folder) else "it was built before, with this recipe and this code", flush=True)
    except ValueError as error:
        parser.error(str(error))
    if problem := problem_in(folder):
        sys.exit(f"{name} cannot be used: {problem}; take another lab, or another seed")
    print("\nsettings for routed-rl train and compare:\n", *(f"  {override}" for override in overrides(folder)), sep="\n")


if __name__ == "__main__":
    main()
