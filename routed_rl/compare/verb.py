"""The verb: plan the runs, do those that are missing, read their summaries, write and show the result."""

from __future__ import annotations

from pathlib import Path

from routed_rl import console
from routed_rl.artifacts import alone_in, write_json
from routed_rl.compare import report
from routed_rl.compare.arms import ROUTED, plan_ranks, plan_runs
from routed_rl.compare.results import results
from routed_rl.config import Compose
from routed_rl.jobs import Execute, refuse_failed, run_missing, train_or_resume


def compare(overrides: list[str], arms: list[str], seeds: int, out: str, jobs: int, ranks: list[int], compose: Compose, *,
            rank_seeds: int = 1, execute: Execute = train_or_resume) -> Path:
    """Run every arm under every seed, and `route` at `ranks` under the first `rank_seeds`; returns OUT/compare.json.

    The same call goes on where an earlier one stopped: finished runs are kept, unfinished ones resumed. Beside the JSON
    there are compare.md and compare.png, the runs and their logs. Runs that failed are left out, then raise RoutedRLError.
    """
    folder = Path(out).absolute()
    planned = plan_runs(overrides, arms, seeds, folder, compose)
    at_ranks = plan_ranks(overrides, ranks if ROUTED in arms else [], min(rank_seeds, seeds), folder, compose)
    runs = {run.name: run for run in [*planned, *(run for plan in at_ranks.values() for run in plan)]}
    with alone_in(folder):
        failed = run_missing(list(runs.values()), execute, jobs, folder / "logs", "compare", "--out")
    summaries = {name: run.folder.results() for name, run in runs.items() if name not in failed}
    found = results({arm: {run.seed: summaries[run.name] for run in planned if run.arm == arm and run.name in summaries}
                     for arm in dict.fromkeys(arms)},
                    {rank: {run.seed: summaries[run.name] for run in plan if run.name in summaries}
                     for rank, plan in at_ranks.items()})
    notes = _notes(seeds, failed)
    request = {"overrides": overrides, "arms": arms, "seeds": seeds, "ranks": list(at_ranks), "rank_seeds": rank_seeds}
    write_json(folder / "compare.json", {**found, "request": request, "failed": failed, "notes": notes})
    report.write_markdown(folder / "compare.md", found, notes)
    report.draw(folder / "compare.png", found)
    report.show(found, notes)
    console.say(f"written: {folder}/compare.json, compare.md, compare.png")
    refuse_failed(failed, len(runs), folder / "logs")
    return folder / "compare.json"


def _notes(seeds: int, failed: dict[str, str]) -> list[str]:
    notes = [f"{name} is missing: {problem}" for name, problem in failed.items()]
    if seeds == 1:
        notes.append("one seed: there are no intervals; a mean needs --seeds 3, a headline --seeds 5")
    elif seeds < 3:
        notes.append(f"{seeds} seeds: intervals are very wide; a mean needs --seeds 3, a headline --seeds 5")
    return notes

