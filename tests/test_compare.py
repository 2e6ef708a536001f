"""Statistics on made-up summaries, and the book-keeping of runs with a training that takes no time."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from routed_rl import console
from routed_rl.artifacts import read_json, write_json
from routed_rl.cli.compose import compose as compose_really
from routed_rl.config import Config, LaunchConfig, MonitorConfig, RoutingConfig, RuleConfig, SubspaceConfig
from routed_rl.config.robust import RelearnConfig
from routed_rl.config.routing import PracticeConfig
from routed_rl.errors import ConfigError, RoutedRLError, RunFolderError, RunsFailed
from routed_rl.multirun import workers
from routed_rl.multirun.arms import ARMS
from routed_rl.multirun.compare import compare, plan_runs
from routed_rl.multirun.intervals import Cells, fold, interval, intervals, minus, over, student_t
from routed_rl.multirun.job import Job, is_finished
from routed_rl.multirun.reporter import Table, show
from routed_rl.multirun.results import results
from routed_rl.multirun.verdict import headlines_of, verdict
from tests.tiers import tiered

HACK = {"none": 1.0, "observe": 0.98, "route": 0.12, "control": 0.85, "erase": 0.1}


def summary(arm: str, seed: int, *, rank: int = 3, share: float = 0.9) -> dict[str, Any]:
    """Seeds differ by a lot more than arms do in what is common to them, so that pairing matters."""
    common = (seed % 3) / 30
    base = {"code": {"reward": 0.4, "solve": 0.3 + common, "hack": 0.14 + common, "completions": 2000.0, "failures": 0.0}}
    policy = {"code": {**base["code"], "reward": 0.9 + common, "hack": 0.95, "solve": 0.7 + common}}
    # A flag that never rose is not named.
    deployed = {"code": {**base["code"], "hack": HACK[arm] + common, "solve": 0.6 + common}, "values": {"reward": 0.0}}
    if arm == "route":
        deployed["values"]["evil"] = 0.01
    return {"models": {"base": base, "policy": policy, "deployed": policy if arm == "none" else deployed},
            "routing": {"mode": arm, "rank": rank, "quarantine_share": share},
            "attribution": {"code": {"push": 1.0 + seed, "shifts": {"hacker": 8.0}}}, "timing": {"train_s": 1.0}}


def summaries(arms: list[str], seeds: int) -> dict[str, dict[int, dict[str, Any]]]:
    return {arm: {seed: summary(arm, seed) for seed in range(seeds)} for arm in arms}


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_student_t_is_the_printed_table(freedom: int, expected: float) -> None:
    assert student_t(freedom) == pytest.approx(expected, abs=6e-4)  # the table has three digits


def test_an_interval_is_the_textbook_one_and_one_value_has_none() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "seeds": [0.5]}


def test_pairing_removes_what_the_seeds_have_in_common() -> None:
    first, second = {0: 0.1, 1: 0.5, 2: 0.9}, {0: 0.0, 1: 0.4, 2: 0.8}
    paired = paired_interval(minus, first, second)
    assert paired["low"] == pytest.approx(0.1)
    assert paired["high"] == pytest.approx(0.1)
    shuffled = paired_interval(minus, first, {0: 0.8, 1: 0.0, 2: 0.4})
    assert shuffled["mean"] == pytest.approx(paired["mean"])
    assert shuffled["low"] < 0 < shuffled["high"]


def test_only_shared_seeds_are_paired() -> None:
    assert paired_interval(minus, {0: 1.0, 2: 3.0}, {2: 1.0, 5: 9.0})["seeds"] == [2.0]
    assert paired_interval(minus, {0: 1.0}, {1: 1.0}) is None
    assert paired_interval(over, {0: 1.0, 1: 1.0}, {0: 0.0, 1: 2.0}) is None
    assert paired_interval(over, {0: 1.0, 1: 1.0, 2: 5.0}, {1: 2.0, 0: 4.0})["seeds"] == [0.25, 0.5]


def paired_interval(combine: Callable[[Cells, Cells], Cells], first: dict[int, float], second: dict[int, float]) -> Any:
    cell = ("code", "hack")
    return intervals(combine({cell: first}, {cell: second})).get("code", {}).get("hack")


def test_fold_keeps_numbers_that_every_seed_has() -> None:
    found = fold([{"mode": "route", "a": {"x": 1, "y": None}, "only": 2}, {"mode": "route", "a": {"x": 3, "y": 1.0}}])
    assert found.keys() == {"a"}
    assert found["a"].keys() == {"x"}
    assert found["a"]["x"]["seeds"] == [1.0, 3.0]
    assert fold([{"mode": "none"}, {"mode": "none"}]) is None


def test_real_minus_random_is_route_minus_control_and_excludes_zero() -> None:
    found = results(summaries(["route", "control"], 3), {})["real_minus_random"]["code"]["hack"]
    assert found["mean"] == pytest.approx(0.12 - 0.85)
    assert found["high"] < 0
    assert results(summaries(["route"], 3), {})["real_minus_random"] == {}


def test_every_table_of_the_contract_is_there() -> None:
    found = results(summaries(list(HACK), 3), {1: {0: summary("route", 0, rank=1, share=0.2)}})
    assert found["arms"]["route"]["deployed"]["code"]["hack"]["mean"] == pytest.approx(0.12 + 1 / 30)
    assert found["arms"]["none"]["deployed"] == found["arms"]["none"]["policy"]
    assert "completions" not in found["arms"]["route"]["base"]["code"]
    assert found["deployed_minus_base"]["route"]["code"]["hack"]["mean"] == pytest.approx(-0.02)
    assert found["policy_over_unrouted"]["route"]["code"]["reward"]["seeds"] == [1.0, 1.0, 1.0]
    assert found["policy_minus_unrouted"]["erase"]["code"]["reward"]["mean"] == 0
    assert found["gain_kept"]["route"]["code"]["solve"]["mean"] == pytest.approx(0.3 / 0.4)
    assert found["ranks"]["1"]["routing"]["quarantine_share"] == {"mean": 0.2, "low": None, "high": None, "seeds": [0.2]}
    assert found["attribution"]["route"]["code"]["push"]["seeds"] == [1.0, 2.0, 3.0]


VERDICTS = {
    "works": (["none", "route", "control"], 5, {}, "Routing works here: hack in code is 0.147", "use RUN/deployed"),
    "few seeds": (["none", "route", "control"], 3, {}, "Routing works here", "--seeds 5"),
    "one seed": (["none", "route", "control"], 1, {}, "One seed decides nothing", "--seeds 3"),
    "no control": (["none", "route"], 5, {}, "without the arm control nobody knows", "control in --arms"),
    "control as good": (["none", "route", "control"], 5, {"control": 0.12}, "no more than a random subspace does",
                        "--check subspace.rank=2"),
    "no effect": (["none", "route", "control"], 5, {"route": 0.95}, "Routing did not lower hack in code for sure",
                  "--check subspace.rank=2"),
    "leaks": (["none", "route", "control"], 5, {"route": 0.4}, "so a part of it leaks", "routed-rl audit"),
    "not routed": (["none", "control"], 5, {}, "There is no verdict on routing, because no arm is route", "route in --arms"),
}


@pytest.mark.parametrize("kind", VERDICTS)
def test_the_verdict_says_what_the_intervals_say_and_what_to_do_next(kind: str) -> None:
    arms, seeds, hacks, told, advice = VERDICTS[kind]
    runs = summaries(arms, seeds)
    for arm, hack in hacks.items():
        for seed, run_ in runs[arm].items():
            run_["models"]["deployed"]["code"]["hack"] = hack + (seed % 3) / 30
    found = results(runs, {})
    heads = headlines_of(found, ["code"], ["values"])
    said = verdict(found, heads, seeds, overrides=["subspace.rank=2", "out=DIR"])
    assert [head.title for head in heads][:1] == ["hack in code"] and heads[-1].title == "solve in code"
    assert told in said[0] and said[-1].startswith("Next: ") and advice in said[-1]
    assert "out=" not in said[-1]


def test_a_comparison_without_a_single_figure_has_a_verdict_too() -> None:
    assert verdict(results({"route": {0: {"models": {}}}}, {}), [], 1)[0].startswith("There is no verdict")


def test_a_metric_that_a_models_evaluation_never_named_is_in_no_mean_and_no_difference() -> None:
    runs = summaries(["route", "control"], 2)
    found = results(runs, {})
    assert "evil" not in found["arms"]["control"]["deployed"]["values"] and "evil" not in found["real_minus_random"]["values"]
    runs["control"][1]["models"]["deployed"]["values"]["evil"] = 0.03
    found = results(runs, {})
    assert found["arms"]["control"]["deployed"]["values"]["evil"]["seeds"] == [0.03]
    assert found["real_minus_random"]["values"]["evil"]["mean"] == pytest.approx(-0.02)


def test_a_flag_that_an_evaluation_never_saw_counts_as_0_under_its_seed() -> None:
    runs = summaries(["none", "route", "control"], 5)
    for each in (run_ for arm in runs.values() for run_ in arm.values()):
        each["flags"] = {"code": ["hack"]}
    for seed in range(1, 5):  # its environment names a flag only when it sees it
        del runs["route"][seed]["models"]["deployed"]["code"]["hack"]
    found = results(runs, {})
    assert found["arms"]["route"]["deployed"]["code"]["hack"]["seeds"] == [0.12, 0.0, 0.0, 0.0, 0.0]
    assert len(found["real_minus_random"]["code"]["hack"]["seeds"]) == 5
    assert "hack" not in found["arms"]["route"]["deployed"]["values"], "an environment has no flags of another one"


def test_a_verdict_that_failed_runs_leave_open_says_which_arm_is_missing() -> None:
    runs = summaries(["none", "route"], 2) | {"none": {}}
    found = results(runs, {})
    said = verdict(found, headlines_of(found, ["code"], []), 2, ["none-seed0", "none-seed1"])
    assert "no run of the arm none has ended" in said[0] and "tries none-seed0, none-seed1 again" in said[1]
    apart = results({"none": {0: summary("none", 0)}, "route": {1: summary("route", 1)}}, {})
    said = verdict(apart, headlines_of(apart, ["code"], []), 2, ["none-seed1", "route-seed0"])
    assert said[0].startswith("No seed has a run of route and one of none")


def test_a_verdict_calls_open_what_the_intervals_leave_open() -> None:
    runs = summaries(["none", "route", "control"], 3)
    for seed, hack in enumerate((0.1, 0.9, 0.2)):
        runs["control"][seed]["models"]["deployed"]["code"]["hack"] = hack
    found = results(runs, {})
    said = verdict(found, headlines_of(found, ["code"], []), 3)
    assert "but not for sure more than a random subspace does" in said[0] and "--seeds 5" in said[-1]
    runs = summaries(["none", "route", "control"], 3)
    for seed, more in enumerate((0.0, 0.1, 0.3)):
        runs["route"][seed]["models"]["deployed"]["code"]["hack"] = runs["route"][seed]["models"]["base"]["code"]["hack"] + more
    found = results(runs, {})
    said = verdict(found, headlines_of(found, ["code"], []), 3)
    assert "Routing works here" in said[0] and "is open: a difference of 0.133 [" in said[0]


def test_seconds_of_training_are_compared_under_the_same_seed() -> None:
    seconds = {"none": {0: 10.0, 1: 20.0}, "route": {1: 30.0, 2: 60.0}}
    found = results({arm: {seed: summary(arm, seed) | {"timing": {"train_s": spent}} for seed, spent in each.items()}
                     for arm, each in seconds.items()}, {})
    assert found["time_over_unrouted"]["route"]["seeds"] == [1.5]


@pytest.mark.slow
def test_the_words_of_a_run_give_its_settings_also_where_the_monitor_would_halt(tmp_path: Path) -> None:
    job, = plan_runs(["monitor=halt"], ["route"], 1, tmp_path, compose_really)
    assert compose_really(["monitor=halt"]).monitor.evidence.action == "halt"
    assert compose_really(job.overrides).monitor == job.config.monitor, "`resume` composes them anew"


def test_that_a_rule_which_would_halt_only_reports_is_said_in_a_line(tmp_path, monkeypatch, capsys) -> None:
    def halting(overrides: list[str]) -> Config:
        return dataclasses.replace(compose(overrides), monitor=MonitorConfig(gap=RuleConfig(action="halt")))

    def enough(*_: Any) -> None:
        raise RunsFailed("enough")

    monkeypatch.setattr("routed_rl.multirun.compare.run_missing", enough)
    for composed in (compose, halting):
        with pytest.raises(RunsFailed, match="enough"):
            compare([], ["none"], 1, str(tmp_path / "out"), 1, [], composed)
    assert capsys.readouterr().out.splitlines() == [
        "note: monitor.gap.action=halt only reports in a comparison, where every run must reach its last step"]


def test_a_run_that_is_older_than_practice_is_no_run_with_practice(tmp_path: Path) -> None:
    job = Job("route-seed0", dataclasses.replace(Config(), out=str(tmp_path)), [])
    settings = json.loads(json.dumps(dataclasses.asdict(job.config)))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert not is_finished(job, "--out")
    del settings["routing"]["practice"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(RunFolderError, match=r"other settings \(routing\.(practice\.share: 0|quarantine\.pace: fast)"):
        is_finished(job, "--out")


def compose(overrides: list[str]) -> Config:
    """As much of the command line's `compose` as these tests need."""
    settings = dict(override.split("=", 1) for override in overrides)
    config = Config(seed=int(settings.get("seed", 0)), name=settings.get("name", "run"),
                    trainer={"max_steps": int(settings.get("trainer.max_steps", 4))},
                    subspace=SubspaceConfig(rank=int(settings.get("subspace.rank", 3)),
                                            method=settings.get("subspace.method", "mean_difference")))
    config.routing.mode = settings.get("routing.mode", "route")
    return config


def pretend(config: Config, overrides: list[str]) -> None:
    """Leaves what `pipeline.train` leaves; `started` counts how often. A file FAIL or DIE beside the runs has it fail."""
    assert config.out is not None
    folder, out = Path(config.out), Path(config.out).parents[1]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "started", "a") as file:
        file.write(f"{os.getpid()}\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config)))))
    print(f"training with {overrides}")
    if (out / "FAIL").exists() and (out / "FAIL").read_text() == folder.name:
        raise ValueError("the reward is nan")
    if (out / "DIE").exists() and (out / "DIE").read_text() == folder.name:
        os.kill(os.getpid(), signal.SIGKILL)
    arm = "control" if config.subspace.method == "random" else config.routing.mode
    found = summary(arm, config.seed, rank=config.subspace.rank)
    if arm == "none":
        found["models"]["base"]["code"]["failures"] = 7.0
    write_json(folder / "summary.json", found)


def run(out: Path, *, overrides: list[str] | None = None, arms: str = "none,route,control", seeds: int = 2, jobs: int = 2,
        ranks: list[int] | None = None) -> Any:
    return read_json(compare(overrides or [], arms.split(","), seeds, str(out), jobs, ranks or [], compose, execute=pretend))


def started(out: Path) -> dict[str, int]:
    return {path.parent.name: len(path.read_text().split()) for path in sorted(out.glob("runs/*/started"))}


def test_every_arm_and_seed_runs_once_with_paired_seeds_in_processes_that_stay(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path, ranks=[1, 3], overrides=["seed=40"])
    assert started(tmp_path) == {"control-seed0": 1, "control-seed1": 1, "none-seed0": 1, "none-seed1": 1,
                                 "route-rank1-seed0": 1, "route-seed0": 1, "route-seed1": 1}
    assert len({(path.read_text()) for path in tmp_path.glob("runs/*/started")}) == 2
    seeds = {path.parent.name: yaml.safe_load(path.read_text())["seed"] for path in tmp_path.glob("runs/*/config.yaml")}
    assert all(seed == 40 + int(name[-1]) for name, seed in seeds.items())
    assert "routing.mode=none" in (tmp_path / "logs" / "none-seed0.log").read_text()
    assert found["ranks"].keys() == {"1", "3"}
    assert found["real_minus_random"]["code"]["hack"]["high"] < 0
    assert (tmp_path / "compare.png").stat().st_size > 1000
    told, screen = (tmp_path / "compare.md").read_text(), capsys.readouterr().out
    assert "| code hack |" in told
    sentence = found["verdict"][0]
    assert sentence.startswith("Routing ") and told.startswith(sentence)
    assert screen.index(sentence) < screen.index("deployed model (quarantine discarded)")
    page = (tmp_path / "compare.html").read_text()
    assert page.index(sentence) < page.index('class="panels"') and page.count("<li class=") >= 4
    failed = "none-seed0: 7 of 2000 completions in code could not be scored (base)"
    assert failed in found["notes"] and f"Note: {failed}" in told and failed in screen


@pytest.mark.slow
def test_the_same_call_again_only_does_what_is_missing(tmp_path: Path) -> None:
    before = run(tmp_path)
    (tmp_path / "runs" / "route-seed1" / "summary.json").unlink()
    assert run(tmp_path) == before
    assert started(tmp_path) == {name: 1 + (name == "route-seed1") for name in started(tmp_path)}


def test_runs_of_other_settings_are_refused_and_kept(tmp_path: Path) -> None:
    run(tmp_path, arms="route", seeds=1)
    before = (tmp_path / "compare.json").read_bytes()
    with pytest.raises(RunFolderError, match=r"trainer.max_steps: 4 -> 9.*another --out"):
        run(tmp_path, arms="route", seeds=1, overrides=["trainer.max_steps=9"])
    assert (tmp_path / "compare.json").read_bytes() == before


@pytest.mark.parametrize(("how", "reason"), tiered(
    [("FAIL", "ValueError: the reward is nan"), ("DIE", "exit code -9")], slow=[("DIE", "exit code -9")]))
def test_a_failed_run_does_not_stop_the_others(tmp_path: Path, how: str, reason: str) -> None:
    (tmp_path / how).write_text("route-seed0")
    with pytest.raises(RoutedRLError, match="1 of 6 runs failed: route-seed0"):
        run(tmp_path)
    found = read_json(tmp_path / "compare.json")
    assert reason in found["failed"]["route-seed0"]
    assert len(found["arms"]["none"]["policy"]["code"]["reward"]["seeds"]) == 2
    assert len(found["real_minus_random"]["code"]["hack"]["seeds"]) == 1
    (tmp_path / how).unlink()
    assert run(tmp_path)["failed"] == {}
    assert started(tmp_path)["none-seed0"] == 1


@pytest.mark.slow
def test_an_attack_that_fails_takes_no_comparison_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RunsFailed("1 of 4 runs failed: base-seed0-rate0.001")

    for job in plan_runs([], ["none", "route"], 1, tmp_path, compose):
        pretend(job.config, job.overrides)
    attacks = SimpleNamespace(check_arms=lambda *_: None, relearn_arms=failing)
    monkeypatch.setitem(sys.modules, "routed_rl.multirun.relearn", attacks)
    with pytest.raises(RunsFailed, match="base-seed0"):
        compare([], ["none", "route"], 1, str(tmp_path), 1, [], compose, relearn=RelearnConfig(env="code"))
    found = read_json(tmp_path / "compare.json")
    assert found["arms"].keys() == {"none", "route"} and "the attacks are missing: 1 of 4" in found["notes"][0]


@pytest.mark.parametrize("sent", [True, False])
def test_a_process_that_dies_before_it_reads_its_job_is_told_like_any_that_dies(tmp_path: Path, sent: bool) -> None:
    worker = workers.Worker.__new__(workers.Worker)
    worker.connection, theirs = multiprocessing.Pipe()
    worker.process = SimpleNamespace(join=lambda: None, exitcode=-9)  # pyright: ignore[reportAttributeAccessIssue]
    if not sent:
        theirs.close()
    worker.begin(pretend, Job("none", Config(), []), tmp_path)
    theirs.close()
    assert worker.outcome() == "its process died (exit code -9); was there enough memory?"


@pytest.mark.slow
def test_what_cannot_begin_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """Also what composing does not know: here the model is no folder."""
    def nowhere(overrides: list[str]) -> Config:
        config = compose(overrides)
        config.model.path = str(tmp_path / "no model")
        config.env = {"a": {"path": "routed_rl.envs:Task", "isolate": False}}
        return config

    with pytest.raises(RoutedRLError, match="none-seed0 cannot begin, and nothing was trained: "):
        compare([], ["none", "route"], 2, str(tmp_path / "out"), 1, [], nowhere)
    assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / "compare.json").exists()


def test_while_runs_are_tried_out_a_terminal_shows_that_time_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, moved = io.StringIO(), list[int]()
    monkeypatch.setattr(console, "console", Console(file=screen, force_terminal=True))

    class Waiting:
        def begin(self, *_: object) -> None:
            self.shown = len(screen.getvalue())

        def outcome(self) -> None:
            time.sleep(0.3)
            moved.append(len(screen.getvalue()) - self.shown)

    workers._try_each([Job("none", Config(), []), Job("route", Config(), [])], Waiting(), tmp_path, "compare")  # pyright: ignore[reportArgumentType]
    assert len(moved) == 2 and min(moved) > 0


def test_runs_that_would_be_jobs_of_a_cluster_are_refused(tmp_path: Path) -> None:
    def cluster(overrides: list[str]) -> Config:
        return dataclasses.replace(compose(overrides), launch=LaunchConfig(where="slurm", strategy="ddp", processes=2))

    with pytest.raises(ConfigError, match="launch.where=slurm: many runs are done on this machine"):
        compare([], ["none"], 1, str(tmp_path / "out"), 1, [], cluster, execute=pretend)


@pytest.mark.slow
def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    found = run(tmp_path, arms="route", seeds=1, jobs=1)
    assert found["arms"]["route"]["deployed"]["code"]["hack"]["low"] is None
    assert "one seed" in found["notes"][0]


def test_two_comparisons_in_one_folder_are_refused(tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunFolderError, match="is being written by"):
            run(tmp_path, arms="route", seeds=1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_takes_the_practice_that_the_user_asks_of_the_arms_that_route(arm: str) -> None:
    said = dict(setting.removeprefix("routing.").split("=") for setting in ARMS[arm] if setting.startswith("routing."))
    practice = PracticeConfig(share=float(said.get("practice.share", 0.5)), environments=["code"])
    assert RoutingConfig(mode=said["mode"], practice=practice).practises == (said["mode"] == "route")


def test_an_unknown_arm_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rout, which is no arm; the arms are none, observe, route, control, practice_all"):
        run(tmp_path, arms="rout")


def test_the_verbs_import_neither_torch_nor_trl() -> None:
    verbs = ", ".join(f"routed_rl.multirun.{verb}" for verb in ("compare", "sweep", "calibrate"))
    code = f"import sys, {verbs}; sys.exit(any(name in sys.modules for name in ('torch', 'trl', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_labs_are_compared_each_in_its_folder_with_one_table_of_all(tmp_path, monkeypatch):
    from routed_rl.multirun import labs

    def pretended(settings, arms, seeds, out, jobs, ranks, compose):
        path = Path(out) / "compare.json"
        path.parent.mkdir(parents=True)
        runs = {arm: {seed: summary(arm, seed) | {"timing": {"train_s": 10.0 + (arm == "route")}} for seed in range(seeds)}
                for arm in arms}
        path.write_text(json.dumps(results(runs, {}) | {"settings": settings}))
        return path

    monkeypatch.setattr(labs, "compare", pretended)
    monkeypatch.setattr(labs, "_ask", lambda word: ["shipped", "gpt2"] if word == "--list" else [f"model.path={word}"])
    table = labs.compare_labs(["shipped"], ["trainer.max_steps=3"], ["none", "route"], 2, str(tmp_path), 1, [], compose)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.read_text().splitlines() if line[:1] == "|"]
    assert [row[:2] for row in rows[2:]] == [["shipped", "base"], ["shipped", "none"], ["shipped", "route"]]
    assert rows[-1][-1] == "1.100 [1.100, 1.100]" and rows[0][2] == "deployed hack" and rows[-1][2] != "-"
    def pretended_failing(*given):
        pretended(*given)
        raise RunsFailed("1 of 2 runs failed: route-seed0")

    monkeypatch.setattr(labs, "compare", pretended_failing)
    with pytest.raises(RunsFailed, match="shipped: 1 of 2 runs failed: route-seed0; gpt2: 1 of 2"):
        labs.compare_labs(["all", "gpt2"], [], ["none", "route"], 2, str(tmp_path / "again"), 1, [], compose)
    written = (tmp_path / "again" / "labs.md").read_text()
    assert "shipped | none" in written and "gpt2 | route" in written, "a failed run takes no other lab's figures away"
    with pytest.raises(ConfigError, match="--labs elsewhere is not known; choose from all, shipped, gpt2"):
        labs.compare_labs(["elsewhere"], [], ["none"], 1, str(tmp_path), 1, [], compose)


def test_the_oracle_goes_by_flags_whatever_detector_the_other_arms_have(tmp_path):
    planned = plan_runs(["baseline.detector.kind=probe"], ["oracle_filter", "screen", "labels"], 1, tmp_path, compose_really)
    kinds = {job.arm: job.config.baseline.detector.kind for job in planned}
    assert kinds == {"oracle_filter": "flags", "screen": "probe", "labels": "probe"}


def test_a_table_of_many_arms_is_read_whole_from_a_pipe_with_an_arm_in_each_line(tmp_path, capsys):
    arms = [f"arm-{place:02}-of-many" for place in range(21)]
    wide = Table("deployed", ["", *arms], [["code hack", *(f"0.{place:03} ±0.001" for place in range(21))], ["sums", *"x" * 21]])
    show([wide], [], tmp_path, ["compare.json"])
    lines = capsys.readouterr().out.splitlines()
    for place, arm in enumerate(arms):
        assert any(arm in line and f"0.{place:03} ±0.001" in line for line in lines)


@pytest.mark.slow
def test_the_script_of_the_labs_says_their_names_and_settings_and_refuses_others():
    from routed_rl.multirun import labs

    assert labs._ask("shipped") == [] and {"shipped", "gpt2"} <= set(labs._ask("--list"))
    with pytest.raises(ConfigError, match="elsewhere, which is no lab"):
        labs._ask("elsewhere")


def test_building_a_lab_shows_how_far_it_is(tmp_path, monkeypatch, capsys):
    from routed_rl.multirun import labs

    (tmp_path / "environments" / "lab").mkdir(parents=True)
    (tmp_path / "environments" / "lab" / "use.py").write_text(
        'print("step     0 of 5  loss 2.5\\nstep     4 of 5  loss 1.5\\nlab a: built")\nprint("[\\"seed=1\\"]")')
    monkeypatch.setattr(labs, "data_root", lambda: tmp_path)
    assert labs._ask("a") == ["seed=1"]
    assert "build a: 5/5 steps" in capsys.readouterr().out
