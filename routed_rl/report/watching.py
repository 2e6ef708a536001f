"""The option `routed-rl report --watch`: the page of a run is written again and again while the run trains."""

import time
from pathlib import Path

from routed_rl import console
from routed_rl.artifacts import RunFolder, is_held
from routed_rl.report.run_page import write_report

EVERY_S = 10


def watch_report(run: RunFolder, out: Path | None = None, *, every_s: float = EVERY_S) -> Path:
    """Write the page to `out` again and again, every `every_s` seconds if the run has written anything in the meantime, until no
    process trains the run any longer. Returns the path of the page. Meanwhile a browser reloads the page by itself. Ctrl-C ends
    the watching, not the run."""
    seen = None
    try:
        while is_held(run.path):
            stamps = [path.stat().st_mtime_ns for path in (run.metrics, run.answers, run.verdicts) if path.exists()]
            if stamps != seen:
                page = write_report(run, out, every_s=EVERY_S)
                if seen is None:
                    console.say(f"report: {page}, renewed every {every_s:g} s; Ctrl-C ends the watching, not the run")
                seen = stamps
            time.sleep(every_s)
        if seen is None:
            console.say(f"nothing trains in {run.path} now, so there is nothing to watch; this is the page as it stands")
    except KeyboardInterrupt:
        console.say("no longer watched")
    return write_report(run, out)
