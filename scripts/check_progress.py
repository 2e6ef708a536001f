"""Find silences: run the verbs on the persona lab, on a terminal, and report how long each one shows nothing.

    python scripts/check_progress.py FOLDER [--only VERB ...] [--limit 2]

Each verb runs as on a person's terminal, with few steps and samples; bars that move count as output. A silence is measured in
seconds by the clock, and beside it in seconds of the CPU that the command and its children used, which is what an idle machine
with one core would have needed. FOLDER holds the runs and must not exist; FOLDER/progress.md is the table. Exit code 1 if a verb
is silent for longer than the limit of CPU seconds, or fails.
"""

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from routed_rl.console import markdown_table  # noqa: E402

SHORT = ["trainer.max_steps=3", "trainer.save_steps=3", "trainer.per_device_train_batch_size=64", "evaluation.samples=40"]
TICK_S = 0.1
TOKEN = "no-token"
"""A dry run of a push asks whether there is a token, and sends nothing."""
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass
class Silence:
    """The longest stretch without output: seconds by the clock, CPU seconds, and the line before it."""

    seconds: float = 0.0
    cpu: float = 0.0
    before: str = "(the start)"


def verbs(folder: Path) -> dict[str, list[str]]:
    """Each command under the name that the table has for it, in an order in which each finds what it needs."""
    run, kept = str(folder / "run"), [*SHORT, "tracking.report=false"]
    (folder / "password").write_text("a long password for a check\n")
    return {
        "settings": ["settings", "pace"], "env list": ["env", "list"], "env try": ["env", "try", "lab"],
        "env check": ["env", "check", "lab", "--samples", "5"], "doctor": ["doctor"], "train --dry-run": ["train", "--dry-run"],
        "train": ["train", *SHORT, f"out={run}"], "resume": ["resume", run, "trainer.max_steps=4"],
        "rollback": ["rollback", run, "--step", "3", f"out={folder / 'back'}"],
        "extract --check": ["extract", "--check", f"out={folder / 'subspace'}"],
        "evaluate": ["evaluate", run, "--json", str(folder / "again.json")], "report": ["report", run],
        "discard": ["discard", run, "--out", str(folder / "deployed")],
        "discard --keep": ["discard", run, "--out", str(folder / "kept"), "--keep", "sums=auto"],
        "export": ["export", run, "--quarantine", str(folder / "adapter"), "--policy", str(folder / "policy")],
        "push --dry-run": ["push", run, "me/model", "--dry-run"],
        "audit": ["audit", run, "--samples", "20", "--prompts", "8"],
        "filter": ["filter", run, "--out", str(folder / "filtered.jsonl"), "--labels", ".5"],
        "share": ["share", run, "--out", str(folder / "site"), "--password-file", str(folder / "password")],
        "share --check": ["share", "--check", str(folder / "site")],
        "unshare": ["unshare", str(folder / "site"), "--out", str(folder / "back-again"), "--password-file",
                    str(folder / "password")],
        "robustify": ["robustify", run, "--alpha", ".4", "--out", str(folder / "robust"), "--samples", "64", "--steps", "5"],
        "relearn": ["relearn", run, "--env", "code", "--json", str(folder / "relearn.json"), "--rates", "1e-3", "--seeds", "1",
                    "--steps", "2", "--completions", "16", "--samples", "32"],
        "compare": ["compare", *kept, "--arms", "none,route", "--seeds", "1", "--ranks", "", "--jobs", "1", "--out",
                    str(folder / "compare")],
        "sweep": ["sweep", *kept, "seed=0,1", "sweep.jobs=1", f"out={folder / 'sweep'}"],
        "calibrate": ["calibrate", *kept, "env=six_secure", "monitor=halt", "--seeds", "5", "--rate", ".2", "--jobs", "1",
                      "--out", str(folder / "calibration")],
    }


def cpu_seconds(process: int) -> float:
    """CPU seconds of a process and its children so far, those that have ended included once they were waited for."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        children = " ".join(path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children"))
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, fields[11:15])) / HERTZ + sum(cpu_seconds(int(child)) for child in children.split())


def longest_silence(command: list[str], folder: Path) -> tuple[Silence, int, float]:
    """Run a command on a terminal of its own; returns its longest silence, its exit code and its seconds."""
    outer, inner = pty.openpty()
    begun = last = time.monotonic()
    words = [sys.executable, "-m", "routed_rl.cli", *command]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=inner, stderr=inner, cwd=folder,
                               env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "HF_TOKEN": TOKEN})
    os.close(inner)
    found, used, line = Silence(), 0.0, Silence().before
    while True:
        ready, _, _ = select.select([outer], [], [], TICK_S)
        now, cpu = time.monotonic(), cpu_seconds(process.pid)
        if cpu - used > found.cpu:
            found = Silence(now - last, cpu - used, line)
        if ready:
            try:
                text = os.read(outer, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                text = ""
            if not text:
                break
            line = next((each.strip() for each in reversed(CODES.sub("\n", text).splitlines()) if each.strip()), line)
            last, used = now, max(used, cpu)
    os.close(outer)
    return found, process.wait(), time.monotonic() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", metavar="VERB", help="only these rows; those that need a run also need train")
    parser.add_argument("--limit", type=float, default=2.0, help="CPU seconds that a verb may be silent; default: 2")
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    rows, bad = list[list[str]](), 0
    for name, command in verbs(given.folder.absolute()).items():
        if given.only and name not in given.only:
            continue
        silence, code, seconds = longest_silence(command, given.folder)
        bad += silence.cpu > given.limit or code != 0
        before = silence.before[:90].replace("|", "/")
        rows.append([name, f"{seconds:.0f}", f"{silence.cpu:.1f}", f"{silence.seconds:.1f}", before, str(code)])
        print(*rows[-1], sep="  ", flush=True)
        columns = ["verb", "took, s", "longest silence, CPU s", "by the clock, s", "the line before it", "exit code"]
        (given.folder / "progress.md").write_text("\n".join(markdown_table(columns, rows)) + "\n")
    print(f"{bad} of {len(rows)} verbs are silent for more than {given.limit:g} CPU seconds, or fail")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
