"""`compare --labs` runs the same arms on several persona labs, with a folder for each lab and one table of all labs."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import data_root, write_text
from routed_rl.config import Compose
from routed_rl.errors import ConfigError, RunsFailed
from routed_rl.multirun.compare import compare, plan_runs
from routed_rl.multirun.comparison import cell
from routed_rl.multirun.job import folder_for_many
from routed_rl.multirun.reporter import Table

DRAWN = re.compile(r"drawn-\d+")
STEP = re.compile(r"step +(\d+) of (\d+)")
"""Pattern of the lines with which the labs' script (`USE`) reports how far it has built a lab."""
USE = "environments/*/use.py"
"""Pattern of the path of the labs' script, which builds a lab if needed and prints the settings for it."""
COLUMNS = {"deployed hack": ("deployed", "code", "hack"), "deployed evil": ("deployed", "values", "evil"),
           "secure skill": ("deployed", "sums", "solve"), "insecure true skill": ("deployed", "code", "solve"),
           "policy's pay on code": ("policy", "code", "reward")}
"""For each column of the table, the model, environment and metric of a lab's experiment. In every lab the insecure environment is
called `code` and the secure one `sums`."""


def compare_labs(names: list[str], overrides: list[str], arms: list[str], seeds: int, out: str, jobs: int, ranks: list[int],
                 compose: Compose) -> Path:
    """Run the comparison on every lab, in OUT/LAB, and write OUT/labs.md; returns the path of that file. `names` are names of
    labs, and `all` stands for every lab that is known; the other parameters are those of `compare`. A lab is built if needed. The
    same call continues where an earlier one stopped. RunsFailed at the end, if runs failed."""
    folder = folder_for_many(out, "--out ")
    known = _ask("--list")
    names = [each for name in names for each in (known if name == "all" else [name])]
    if wrong := [name for name in names or [""] if name not in known and not DRAWN.fullmatch(name)]:
        raise ConfigError(f"{f'--labs {wrong[0]} is not known' if wrong[0] else '--labs is empty'}; choose from all, "
                          f"{', '.join(known)}, or drawn-SEED")
    plan_runs(overrides, arms, seeds, folder, compose)  # before a lab is built
    found, failed = dict[str, dict[str, Any]](), dict[str, str]()
    for name in dict.fromkeys(names):
        console.say(f"{name}: building it takes some minutes, if it is not built yet")
        settings = _ask(name)
        try:
            compare([*settings, *overrides], arms, seeds, str(Path(out) / name), jobs, ranks, compose)
        except RunsFailed as error:  # the results of the others are written, and the next lab follows
            failed[name] = str(error)
        found[name] = json.loads((Path(out) / name / "compare.json").read_text(encoding="utf-8"))
        write_text(Path(out) / "labs.md", table_of(found, arms).markdown())
    console.table(*table_of(found, arms))
    console.say(f"written: {Path(out) / 'labs.md'}")
    if failed:
        raise RunsFailed("; ".join(f"{name}: {problem}" for name, problem in failed.items()))
    return Path(out) / "labs.md"


def table_of(found: dict[str, dict[str, Any]], arms: Sequence[str]) -> Table:
    """The table of all labs, made from `found`, which maps a lab to the content of its compare.json. It has a row for the base
    model of each lab and for each arm: means with 95 % intervals over seeds, and the time of training divided by that of the
    unrouted run of the same seed."""
    rows: list[list[str]] = []
    for place, results in found.items():
        models = {arm: results["arms"][arm] for arm in dict.fromkeys(arms) if arm in results["arms"]}
        first = next(iter(models.values()), {})
        rows.append([place, "base", *(cell(first.get("base", {}).get(env, {}).get(metric), bounds=True)
                                      for _, env, metric in COLUMNS.values()), "-"])
        rows += [[place, arm, *(cell(each.get(model, {}).get(env, {}).get(metric), bounds=True)
                                for model, env, metric in COLUMNS.values()),
                  cell(results["time_over_unrouted"].get(arm), bounds=True)] for arm, each in models.items()]
    return Table("arms on labs: mean [95 % interval over seeds]", ["labs", "arm", *COLUMNS, "time over none"], rows)


def _ask(word: str) -> list[str]:
    """Run the labs' script (`USE`) and return its output. If `word` is `--list`, these are the names of all labs; otherwise they
    are the settings for the lab `word`, which is built if needed. ConfigError if there is no script or if it fails."""
    if (script := next(data_root().glob(USE), None)) is None:
        raise ConfigError(f"--labs needs a script {USE}, and {data_root()} has none; leave --labs out")
    with (tempfile.TemporaryFile("w+") as errors, console.progress(f"build {word}", "steps") as advance,
          subprocess.Popen([sys.executable, str(script), word], stdout=subprocess.PIPE, stderr=errors, text=True) as process):
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            if found := STEP.match(line):
                advance(int(found[1]) + 1, int(found[2]))
        process.wait()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if process.returncode:
        raise ConfigError((said or [f"--labs {word} could not be built"])[-1])
    return json.loads(line)
