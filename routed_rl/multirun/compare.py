"""The verb `compare` runs the same experiment under several arms, paired by seed."""

from pathlib import Path
from typing import Any

from routed_rl.artifacts import alone_in, write_json, write_text
from routed_rl.config import Compose
from routed_rl.config.robust import RelearnConfig
from routed_rl.errors import ConfigError, RunsFailed
from routed_rl.multirun import relearned, reporter
from routed_rl.multirun.arms import ARMS, ROUTED, UNROUTED
from routed_rl.multirun.compare_page import write_comparison
from routed_rl.multirun.comparison import draw, tables
from routed_rl.multirun.job import Job, folder_for_many, say_reporting, seeded, train_or_resume
from routed_rl.multirun.results import results
from routed_rl.multirun.verdict import headlines_of, verdict
from routed_rl.multirun.workers import Execute, refuse_failed, run_missing
from routed_rl.report.data import roles_of
from routed_rl.report.differences import not_scored


def compare(overrides: list[str], arms: list[str], seeds: int, out: str, jobs: int, ranks: list[int], compose: Compose, *,
            execute: Execute = train_or_resume, relearn: RelearnConfig | None = None) -> Path:
    """Run every arm under every seed, and the arm `route` at each rank of `ranks` under the first seed. Returns OUT/compare.json.
    With `relearn`, the deployed model of each run is also attacked, to see how fast it relearns.

    The same call continues where an earlier one stopped: finished runs are kept, unfinished ones are resumed. `jobs` runs train
    at the same time, each by `execute`. Beside the JSON there are compare.html, compare.md and compare.png, the runs and their
    logs. Failed runs are left out of the results. If an attack fails, the results of all attacks are left out. In both cases
    RunsFailed is raised at the end.
    """
    folder = folder_for_many(out, "--out ")
    planned = plan_runs(overrides, arms, seeds, folder, compose)
    if relearn is not None:
        from routed_rl.multirun.relearn import check_arms  # it imports torch

        check_arms(compose([*overrides, *ARMS[UNROUTED]]), relearn)
    at_ranks = plan_ranks(overrides, ranks if ROUTED in arms else [], folder, compose)
    runs = {run.name: run for run in [*planned, *at_ranks.values()]}
    say_reporting(compose(overrides), "a comparison")
    with alone_in(folder):
        failed = run_missing(list(runs.values()), execute, jobs, folder / "logs", "compare")
        summaries = {name: run.folder.results() for name, run in runs.items() if name not in failed}
        done = {arm: {run.seed: summaries[run.name] for run in planned if run.arm == arm and run.name in summaries}
                for arm in dict.fromkeys(arms)}
        found = results(done, {rank: {0: summaries[run.name]} for rank, run in at_ranks.items() if run.name in summaries})
        unattacked: RunsFailed | None = None
        if relearn is not None:
            there, experiment = [run for run in planned if run.name in summaries], compose([*overrides, *ARMS[UNROUTED]])
            from routed_rl.multirun.relearn import relearn_arms

            try:
                found["relearn"] = relearn_arms(experiment, there, relearn, folder / "relearn", jobs)
            except RunsFailed as error:  # it takes nothing away from the comparison itself
                unattacked = error
        notes = [f"{name} is missing: {problem}" for name, problem in failed.items()]
        notes += [] if unattacked is None else [f"the attacks are missing: {unattacked}"]
        notes += [f"{name}: {line}" for name, summary in summaries.items() for line in not_scored(summary["models"])]
        if seeds < 3:
            wide = "one seed: there are no intervals" if seeds == 1 else f"{seeds} seeds: intervals are very wide"
            notes.append(f"{wide}; set --seeds 3 for a mean, --seeds 5 for a result to report")
        request = {"overrides": overrides, "arms": arms, "seeds": seeds, "ranks": list(at_ranks), "rank_seeds": 1}
        trained, probes = roles_of(planned[0].config.env)
        heads = headlines_of(found, trained, probes)
        said = verdict(found, heads, seeds, failed, overrides)
        whole = {"verdict": said, **found, "request": request, "failed": failed, "notes": notes}
        write_json(folder / "compare.json", whole)
        write_comparison(folder / "compare.html", whole, heads, _tables(found, bounds=True))
        write_text(folder / "compare.md", "\n".join([*(f"{sentence}\n" for sentence in said),
                                                     *(table.markdown() for table in _tables(found, bounds=True)),
                                                     *(f"Note: {note}.\n" for note in notes)]))
        drawn = draw(folder / "compare.png", found)
    reporter.show(_tables(found, bounds=False), notes, folder, ["compare.html", "compare.json", "compare.md", *drawn], said)
    refuse_failed(failed, len(runs), folder / "logs")
    if unattacked is not None:
        raise unattacked
    return folder / "compare.json"


def _tables(found: dict[str, Any], *, bounds: bool) -> list[reporter.Table]:
    """The tables of a comparison, made from `found`, the content of compare.json, with the table of the attacks if there were
    any. `bounds` is that of `comparison.tables`."""
    attacks = found.get("relearn")
    more = [] if attacks is None else [relearned.table(attacks["models"], RelearnConfig(**attacks["settings"]))]
    return [*tables(found, bounds=bounds), *more]


def plan_runs(overrides: list[str], arms: list[str], seeds: int, out: Path, compose: Compose) -> list[Job]:
    """Plan every run of the arms in the folder `out`. The runs are ordered by seed, so that at any time the arms can be compared
    under the seeds that have finished."""
    for arm in arms:
        if arm not in ARMS:
            raise ConfigError(f"--arms has {arm}, which is no arm; the arms are {', '.join(ARMS)}")
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    first = compose(overrides).seed
    return [seeded(arm, seed, [*overrides, *ARMS[arm]], first, out, compose) for seed in range(seeds)
            for arm in dict.fromkeys(arms)]


def plan_ranks(overrides: list[str], ranks: list[int], out: Path, compose: Compose) -> dict[int, Job]:
    """Plan a run of the arm `route` at each of `ranks`, under the first seed. Returns {rank: run}. If one of `ranks` is the
    experiment's own `subspace.rank`, its run is the one that `plan_runs` plans for the arm `route` and the first seed."""
    routed = [*overrides, *ARMS[ROUTED]]
    config = compose(routed)
    plans = {}
    for rank in dict.fromkeys(ranks):
        if rank < 1:
            raise ConfigError(f"--ranks must be at least 1, got {rank}")
        same = config.subspace.rank == rank
        arm, settings = (ROUTED, routed) if same else (f"{ROUTED}-rank{rank}", [*routed, f"subspace.rank={rank}"])
        plans[rank] = seeded(arm, 0, settings, config.seed, out, compose)
    return plans
