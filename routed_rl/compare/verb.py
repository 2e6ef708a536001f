"""The verb: plan the runs, do those that are missing, read their summaries, write and show the result."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from routed_rl import console
from routed_rl.artifacts import RunFolder, read_json, write_json
from routed_rl.compare import report
from routed_rl.compare.arms import ROUTED, Compose, Run, plan_ranks, plan_runs
from routed_rl.compare.results import results
from routed_rl.compare.workers import Execute, run_all
from routed_rl.config import Config, from_mapping
from routed_rl.errors import RoutedRLError, RunFolderError


def train_or_resume(config: Config, overrides: list[str]) -> None:
    """One run, from the start, or from where it was stopped."""
    from routed_rl import pipeline

    assert config.out is not None
    if RunFolder(config.out).config.exists():
        pipeline.resume(config.out, [], _nothing_to_compose)
    else:
        # A process killed while it made the folder leaves one that holds no run.
        shutil.rmtree(config.out, ignore_errors=True)
        pipeline.train(config, overrides)


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
        missing = [run for run in runs.values() if not is_finished(run)]
        console.say(f"compare: {len(runs)} runs, {len(runs) - len(missing)} of them done already, {jobs} at a time; "
                    f"logs in {folder / 'logs'}")
        failed = run_all(missing, execute, jobs, folder / "logs") if missing else {}
    summaries = {name: read_json(run.folder.summary) for name, run in runs.items() if name not in failed}
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
    if failed:
        raise RoutedRLError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; see {folder / 'logs'}; the same "
                            "command tries them again")
    return folder / "compare.json"


def is_finished(run: Run) -> bool:
    """Whether its folder holds the finished run; a folder with other settings is refused, so that nothing is mixed up."""
    if not run.folder.config.exists():
        return False
    there = _comparable(from_mapping(yaml.safe_load(run.folder.config.read_text())))
    if difference := first_difference(there, _comparable(run.config)):
        raise RunFolderError(f"{run.folder.path} was run with other settings ({difference}); give another --out")
    return run.folder.summary.exists()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Two comparisons in one folder would train into the same runs; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(f"another command is at work in {folder}; wait for it, or give another --out") from None
        yield


def first_difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first setting that differs, as `key=before there, key=after here`, or None."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            if found := first_difference(there.get(key), here.get(key), f"{name}.{key}".lstrip(".")):
                return found
        return None
    return None if there == here else f"{name} is {there} there and {here} here"


def _comparable(config: Config) -> Any:
    """Settings as plain JSON, without the folder, which may have been moved."""
    return json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(config, out=None))))


def _notes(seeds: int, failed: dict[str, str]) -> list[str]:
    notes = [f"{name} is missing: {problem}" for name, problem in failed.items()]
    if seeds == 1:
        notes.append("one seed: there are no intervals; a mean needs --seeds 3, a headline --seeds 5")
    elif seeds < 3:
        notes.append(f"{seeds} seeds: intervals are very wide; a mean needs --seeds 3, a headline --seeds 5")
    return notes


def _nothing_to_compose(overrides: list[str]) -> Config:
    raise AssertionError("a resumed run keeps its own settings")
