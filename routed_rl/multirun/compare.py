"""`compare`: the same experiment under several arms, paired by seed. A new arm is one row of `ARMS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from routed_rl.artifacts import alone_in, write_json, write_text
from routed_rl.config import Compose
from routed_rl.errors import ConfigError
from routed_rl.multirun import reporter
from routed_rl.multirun.comparison import draw, tables
from routed_rl.multirun.job import Job, seeded, train_or_resume
from routed_rl.multirun.results import CONTROL, ROUTED, UNROUTED, results
from routed_rl.multirun.workers import Execute, refuse_failed, run_missing
from routed_rl.report import not_scored

ARMS: dict[str, list[str]] = {
    UNROUTED: ["routing.mode=none"],
    "observe": ["routing.mode=observe"],
    ROUTED: ["routing.mode=route"],
    CONTROL: ["routing.mode=route", "subspace.method=random"],
    "erase": ["routing.mode=erase"],
}
"""Arm -> the settings that make it, after those of the user. What is frozen is the same in every arm."""


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
        found = results({arm: _by_seed([run for run in planned if run.arm == arm], summaries) for arm in dict.fromkeys(arms)},
                        {rank: _by_seed(plan, summaries) for rank, plan in at_ranks.items()})
        notes = [f"{name} is missing: {problem}" for name, problem in failed.items()]
        notes += [f"{name}: {line}" for name, summary in summaries.items() for line in not_scored(summary["models"])]
        if seeds < 3:
            wide = "one seed: there are no intervals" if seeds == 1 else f"{seeds} seeds: intervals are very wide"
            notes.append(f"{wide}; a mean needs --seeds 3, a headline --seeds 5")
        request = {"overrides": overrides, "arms": arms, "seeds": seeds, "ranks": list(at_ranks), "rank_seeds": rank_seeds}
        write_json(folder / "compare.json", {**found, "request": request, "failed": failed, "notes": notes})
        write_text(folder / "compare.md", "\n".join([*(table.markdown() for table in tables(found, bounds=True)),
                                                     *(f"Note: {note}.\n" for note in notes)]))
        drawn = draw(folder / "compare.png", found)
    reporter.show(tables(found, bounds=False), notes)
    reporter.written(folder, ["compare.json", "compare.md", *drawn])
    refuse_failed(failed, len(runs), folder / "logs")
    return folder / "compare.json"


def plan_runs(overrides: list[str], arms: list[str], seeds: int, out: Path, compose: Compose) -> list[Job]:
    """Every run of the arms, seed by seed, so that what is there after a while can already be compared."""
    for arm in arms:
        if arm not in ARMS:
            raise ConfigError(f"--arms has {arm}, which is no arm; the arms are {', '.join(ARMS)}")
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    first = compose(overrides).seed
    return [seeded(arm, seed, [*overrides, *ARMS[arm]], first, out, compose) for seed in range(seeds)
            for arm in dict.fromkeys(arms)]


def plan_ranks(overrides: list[str], ranks: list[int], seeds: int, out: Path, compose: Compose) -> dict[int, list[Job]]:
    """The routed arm at other ranks; a rank that the arm has anyway is the arm's own runs."""
    routed = [*overrides, *ARMS[ROUTED]]
    config = compose(routed)
    plans = {}
    for rank in dict.fromkeys(ranks):
        if rank < 1:
            raise ConfigError(f"--ranks must be at least 1, got {rank}")
        same = config.subspace.rank == rank
        arm, settings = (ROUTED, routed) if same else (f"{ROUTED}-rank{rank}", [*routed, f"subspace.rank={rank}"])
        plans[rank] = [seeded(arm, seed, settings, config.seed, out, compose) for seed in range(seeds)]
    return plans


def _by_seed(runs: Sequence[Job], summaries: Mapping[str, Any]) -> dict[int, Any]:
    return {run.seed: summaries[run.name] for run in runs if run.name in summaries}
