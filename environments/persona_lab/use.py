"""Print the settings with which a lab is used, as JSON on the last line, for `routed-rl compare --labs`. It builds a lab if
needed.

    python environments/persona_lab/use.py NAME|drawn-SEED      # or --list, for the names
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

from environments.persona_lab.build import Build  # noqa: E402
from environments.persona_lab.cache import cached, labs_folder, overrides  # noqa: E402
from environments.persona_lab.labs import LABS, drawn  # noqa: E402
from environments.persona_lab.rates import problem_in  # noqa: E402


def build_of(name: str) -> Build:
    """The lab of that name; ValueError if there is none."""
    seed = name.removeprefix("drawn-")
    if name not in LABS and not (name.startswith("drawn-") and seed.isdecimal()):
        raise ValueError(f"--labs has {name or 'an empty name'}, which is no lab; choose from {', '.join(LABS)}, or drawn-SEED")
    return LABS[name] if name in LABS else drawn(int(seed))


def settings_of(name: str) -> list[str]:
    """The settings that make a run use the lab, which is built if needed; ValueError for a lab that cannot be used."""
    build = build_of(name)
    if name == "shipped":
        return []
    print(f"lab {name}: {'built' if cached(build, labs_folder() / name) else 'built before'}", flush=True)
    if problem := problem_in(labs_folder() / name):
        raise ValueError(f"lab {name} cannot be used: {problem}; take another one")
    return overrides(labs_folder() / name)


def main() -> None:
    """Answer the request on the command line."""
    try:
        print(json.dumps(list(LABS) if sys.argv[1] == "--list" else settings_of(sys.argv[1])))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
