"""An environment in a process of its own: the same answers, and nothing that it does reaches the trainer."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from routed_rl.envs import EnvironmentProcess, Failure, Isolation, Score, Task, load_environments
from routed_rl.envs.build import build
from routed_rl.envs.host import processes
from routed_rl.envs.host.child import scrubbed
from routed_rl.envs.scoring import score_many
from routed_rl.errors import ConfigError, TaskError

PLUGINS = Path(__file__).parent / "plugins.py"
ROOT = Path(__file__).parent.parent.parent


def host(name: str = "Plain", *, workers: int = 1, timeout_s: float = 30.0, python: str | None = None,
         **arguments) -> EnvironmentProcess:
    return EnvironmentProcess("mine", f"{PLUGINS}:{name}", arguments, None, Isolation(workers, timeout_s, python))


def first(environment, count: int, split: str = "train", seed: int = 0) -> list[Task]:
    return list(itertools.islice(environment.tasks(split, seed), count))


@pytest.fixture(scope="module")
def plain():
    """One process for the tests that leave it alive."""
    environment = host()
    yield environment
    environment.close()


@pytest.fixture
def fresh(request):
    opened = []

    def make(*args, **kwargs):
        opened.append(host(*args, **kwargs))
        return opened[-1]

    yield make
    for environment in opened:
        environment.close()


def alive(pid: int) -> bool:
    """A zombie, which only its parent can remove, is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def pid_of(environment: EnvironmentProcess, slot: int = 0) -> int:
    facts = environment.child(slot).facts
    assert facts is not None
    return facts["pid"]


# --- the same as in this process --------------------------------------------------------------------------------------

@pytest.mark.parametrize("workers", [1, 3])
def test_tasks_and_scores_are_those_of_the_environment_itself(fresh, workers):
    here, there = build("mine", f"{PLUGINS}:Plain", {}), fresh(workers=workers)
    tasks = first(there, 300)
    assert tasks == first(here, 300)
    assert first(there, 5, "eval", 3) == first(here, 5, "eval", 3) != tasks[:5]
    pairs = [(task, task.data["answer"] if place % 3 else "wrong") for place, task in enumerate(tasks)]
    scores = there.score_many(pairs)
    assert scores == score_many(here, pairs)
    assert {score.reward for score in scores} == {0.0, 1.0}
    assert there.score(*pairs[1]) == here.score(*pairs[1])
    assert there.gold(tasks[0]) == tasks[0].data["answer"]
    assert (there.variant, there.restarts) == ("plain", 0)


def test_a_finite_stream_ends(fresh):
    assert len(list(fresh(limit=130).tasks("train", 0))) == 130
    assert list(fresh(limit=0).tasks("train", 0)) == []


def test_two_readers_of_one_stream_do_not_disturb_each_other(plain):
    both = list(zip(first(plain, 200), first(plain, 200), strict=True))
    left, right = plain.tasks("train", 0), plain.tasks("train", 0)
    mixed = [(next(left), next(right)) for _ in range(200)]
    assert mixed == both


def test_data_that_json_would_change_comes_back_to_the_scorer_as_it_was(fresh):
    there = fresh("Odd")
    tasks = first(there, 2)
    with pytest.raises(KeyError, match="isolate=false"):
        tasks[0].data["tuple"]
    answer = tasks[0].prompt.split()[1]
    assert [score.reward for score in there.score_many([(tasks[0], answer), (tasks[1], answer)])] == [1.0, 0.0]


@pytest.mark.parametrize("text", ["", "\ud800\udfff\x00", "ä" * 300_000, "\n\r\u2028"])
def test_any_text_crosses(plain, text):
    task = Task("?", {"answer": text, "other": [float("inf"), -0.0, 2**70, None, {"deep": [True]}]})
    assert plain.score(task, text or "no") == Score(float(bool(text)), float(bool(text)), {"right": bool(text)},
                                                    {"length": len(text or "no")})


def test_a_task_that_json_cannot_carry_is_still_scored(plain):
    assert plain.score(Task("?", {"answer": "7", "big": 10**5000, 3: "key"}), "7").reward == 1.0


# --- errors are failures, never 0 -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("completion", "reason"), [
    ("raise value", "raised ValueError: bad value"), ("raise memory", "raised MemoryError"),
    ("raise exit", "raised SystemExit: 3"), ("raise unprintable", "raised Unprintable, whose message cannot be shown"),
    ("nan", "not finite"), ("number", "returned 1.0, which is no Score"), ("alarm", "own alarm"),
    ("exit", "exited with code 7"), ("segfault", "SIGSEGV"),
])
def test_what_goes_wrong_in_a_scorer_fails_that_completion_alone(fresh, completion, reason):
    there = fresh()
    task = first(there, 1)[0]
    right = (task, task.data["answer"])
    before, failed, after = there.score_many([right, (task, completion), right])
    assert isinstance(failed, Failure) and reason in failed.reason
    assert before == after and isinstance(before, Score) and before.reward == 1.0


def test_a_score_that_failed_alone_is_raised(plain):
    with pytest.raises(TaskError, match=r"environment mine: \S+plugins\.py:\d+: raised ValueError: bad value"):
        plain.score(Task("?"), "raise value")


def test_a_completion_in_work_at_a_crash_goes_again_once(fresh, tmp_path):
    there = fresh()
    scores = there.score_many([(Task("?", {"answer": "fine"}), f"once {tmp_path / 'seen'}")])
    assert isinstance(scores[0], Score) and there.restarts == 1
    attempts = tmp_path / "log"
    there = fresh(log=str(attempts))
    there.score_many([(Task("?", {"answer": "a"}), text) for text in ("a", "exit", "b")])
    assert attempts.read_text().split().count("exit") == 2 and there.restarts == 2


def test_a_hanging_scorer_is_killed_and_the_others_are_scored(fresh):
    there = fresh(timeout_s=0.5)
    assert there.description
    began = time.monotonic()
    scores = there.score_many([(Task("?", {"answer": "a"}), text) for text in ["a"] * 20 + ["hang"] + ["a"] * 20])
    assert time.monotonic() - began < 8  # one limit and one start, on a busy machine
    assert [place for place, score in enumerate(scores) if isinstance(score, Failure)] == [20]
    assert "took longer than 0.5 s" in scores[20].reason
    assert all(score.reward == 1.0 for place, score in enumerate(scores) if place != 20)


@pytest.mark.slow
def test_the_limit_is_for_one_scoring_not_for_a_bundle(fresh):
    there = fresh(timeout_s=0.8)
    scores = there.score_many([(Task("?"), "sleep 0.2")] * 12)  # 2.4 s together
    assert all(isinstance(score, Score) for score in scores) and there.restarts == 0


def test_what_a_scorer_prints_and_forges_changes_nothing(fresh, capfd):
    there = fresh()
    scores = there.score_many([(Task("?", {"answer": "a"}), text) for text in ("print 20000000", "a", "forge", "a")])
    assert [isinstance(score, Score) and score.reward == 1.0 for score in scores[:2]] == [True, True]
    # A forged message is none of ours: the process goes, the completions are scored by the next one.
    assert isinstance(scores[3], Score) and scores[3].reward == 1.0
    assert "xxx" not in "".join(capfd.readouterr())


# --- killed from outside ----------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_killed_twenty_times_nothing_is_lost_and_each_restart_is_logged(fresh, caplog):
    there = fresh(workers=2)
    tasks = first(there, 400)
    pairs = [(task, "sleep 0.01" if place % 2 else task.data["answer"]) for place, task in enumerate(tasks)]
    killed, over = [0], threading.Event()

    def kill() -> None:
        while killed[0] < 20 and not over.is_set():
            over.wait(0.3)
            slot = killed[0] % 2
            if (child := there._children[slot]) is not None and child.facts and child.process.poll() is None:
                os.kill(child.facts["pid"], signal.SIGKILL)
                killed[0] += 1

    killer = threading.Thread(target=kill)
    with caplog.at_level(logging.WARNING, "routed_rl.envs"):
        killer.start()
        runs = []
        while killed[0] < 20:
            runs.append(there.score_many(pairs))
        over.set()
        killer.join()
        runs.append(there.score_many(pairs))
    for scores in runs:
        assert len(scores) == 400 and all(isinstance(score, Score) and score.reward == 1.0 for score in scores)
    assert killed[0] == 20 == there.restarts
    assert sum("was killed by SIGKILL" in record.message for record in caplog.records) == 20


def test_a_stream_goes_on_where_it_was_after_a_kill(fresh):
    there, expected = fresh(), first(build("mine", f"{PLUGINS}:Plain", {}), 300)
    stream, got = there.tasks("train", 0), []
    for place in range(300):
        if place % 90 == 50:
            os.kill(pid_of(there), signal.SIGKILL)
        got.append(next(stream))
    assert got == expected and there.restarts == 3


def test_a_process_that_dies_over_its_tasks_is_given_up_after_the_second_time(fresh):
    with pytest.raises(TaskError, match="environment mine failed to make tasks: its process exited with code 5, 2 times"):
        first(fresh("BadTasks", how="exit"), 2)


@pytest.mark.parametrize(("how", "reason"), [("raise", "failed to make tasks: RuntimeError: no more"),
                                             ("wrong", "yielded object, not a Task")])
def test_tasks_that_cannot_be_made_are_an_error_after_those_that_could(fresh, how, reason):
    stream = fresh("BadTasks", how=how).tasks("train", 0)
    assert next(stream).prompt == "first"
    with pytest.raises(TaskError, match=rf"environment mine: \S+plugins\.py:\d+: {reason}"):
        next(stream)


@pytest.mark.slow
def test_what_building_raises_is_raised_here(fresh):
    with pytest.raises(TaskError, match="RuntimeError: no database"):
        assert fresh("Broken").description
    with pytest.raises(ConfigError, match="does not take these settings"):
        assert fresh("Plain", nonsense=1).description
    with pytest.raises(ConfigError, match="has no class Nobody"):
        assert fresh("Nobody").description
    with pytest.raises(TaskError, match="exited with code 9 while it was built"):
        assert fresh("Broken", how="exit").description


def test_a_build_that_takes_long_says_so_and_is_killed_once_at_its_limit(caplog, monkeypatch):
    monkeypatch.setattr(processes, "SAY_S", 0.02)
    there = EnvironmentProcess("mine", f"{PLUGINS}:Slow", {}, None, Isolation(start_s=0.1))
    with pytest.raises(TaskError, match=r"env.mine: its process took longer than 0.1 s to be built, and was killed; raise "
                                        r"env.mine.isolate.start_s"):
        _ = there.description
    said = [record.getMessage() for record in caplog.records]
    assert "until it is built; its process is killed after 0.1 s (env.mine.isolate.start_s)" in said[0]
    assert not any("restart" in each for each in said), "it is not started again"


def test_a_process_can_become_the_environment_of_other_arguments(fresh):
    there = fresh(scale=7)
    first(there, 1)
    pid = pid_of(there)
    there.rebuild({"scale": 1000})
    assert first(there, 90) == first(build("mine", f"{PLUGINS}:Plain", {"scale": 1000}), 90)
    assert pid_of(there) == pid and there.restarts == 0
    there.rebuild({"nonsense": 1})
    with pytest.raises(ConfigError, match="does not take these settings"):
        first(there, 1)
    there.rebuild({})
    assert first(there, 3) == first(build("mine", f"{PLUGINS}:Plain", {}), 3)


# --- nothing stays, nothing leaks -------------------------------------------------------------------------------------

def test_closing_leaves_no_process_and_use_starts_again(fresh):
    there = fresh(workers=2)
    there.score_many([(Task("?"), "sleep 0.01")] * 50)
    pids = [pid_of(there, slot) for slot in range(2)]
    there.close()
    assert all(map(gone, pids))
    assert there.score(Task("?", {"answer": "a"}), "a").reward == 1.0


def test_an_environment_that_is_forgotten_takes_its_process_along():
    there = host()
    pid = pid_of(there)
    del there
    assert gone(pid)


PARENT = """
import sys, time
from routed_rl.envs import EnvironmentProcess, Isolation, Task
there = EnvironmentProcess("mine", sys.argv[1] + ":Plain", {}, None, Isolation())
there.score(Task("?"), "daemon " + sys.argv[2])
print(there.child(0).facts["pid"], open(sys.argv[2]).read(), flush=True)
if sys.argv[3] == "hang":
    there.score(Task("?"), "hang")
if sys.argv[3] == "idle":
    time.sleep(600)
"""


@pytest.mark.parametrize("how", ["hang", "idle", "exit"])
def test_no_process_outlives_the_trainer(tmp_path, how):
    """Killed while a scorer hangs, killed while idle, and ended; the environment has started a daemon, too."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(PLUGINS), str(tmp_path / "pid"), how], text=True,
                              stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    if how != "exit":
        assert all(map(alive, pids))
        time.sleep(0.2)  # until the scorer hangs
        parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all(map(gone, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing holds a daemon")
@pytest.mark.parametrize("how", ["closed", "too slow", "worker killed"])
def test_a_daemon_does_not_outlive_its_process(fresh, tmp_path, how):
    """Forked twice, in a session of its own, with a child: at a normal end, at the limit of time, and at a crash."""
    there = fresh(timeout_s=1.0 if how == "too slow" else 30)
    there.score_many([(Task("?"), f"{'lonely' if how == 'too slow' else 'daemon'} {tmp_path / 'pid'}")])
    daemon = int((tmp_path / "pid").read_text())
    if how != "too slow":
        family = [daemon, *children_of(daemon)]
        assert len(family) == 2 and all(map(alive, family))
        there.close() if how == "closed" else os.kill(pid_of(there), signal.SIGKILL)
        assert all(map(gone, family))
    assert gone(daemon)


def children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "MY_SECRET", "DB_PASSWORD", "PLAIN_URL"])
def test_secrets_are_not_visible_and_the_rest_is(fresh, monkeypatch, name):
    monkeypatch.setenv(name, "https://me:hidden@example.org")
    monkeypatch.setenv("ORDINARY", "1")
    there = fresh()
    assert there.score(Task("?"), f"variable {name}").reward == 0.0
    assert there.score(Task("?"), "variable ORDINARY").reward == 1.0


@pytest.mark.slow
def test_secrets_that_the_settings_name_are_visible_also_where_the_class_takes_no_such_setting(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN"):
        monkeypatch.setenv(name, "hidden")
    settings = {"path": f"{PLUGINS}:Plain", "token_env": ["OPENAI_API_KEY", "OPENAI_BASE_URL"]}
    there = load_environments({"x": settings})[0].environment
    seen = [there.score(Task("?"), f"variable {name}").reward for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN")]
    assert seen == [1.0, 1.0, 0.0]
    there.close()


def test_what_processes_need_is_not_taken_for_a_secret():
    needed = {"PATH": "/bin", "HOME": "/home/me", "LANG": "C", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
              "KEYBOARD": "de", "PYTHONHASHSEED": "0", "HF_HOME": "/cache", "http_proxy": "http://proxy:3128"}
    assert scrubbed(needed) == needed


def test_no_torch_in_the_process_and_a_start_takes_less_than_a_second(fresh):
    times = []
    for _ in range(3):
        began = time.monotonic()
        there = fresh()
        assert there.description
        times.append(time.monotonic() - began)
    assert min(times) < 1.0
    assert there.score(Task("?"), "modules torch").reward == 0.0
    assert there.score(Task("?"), "modules random").reward == 1.0


@pytest.mark.slow
def test_two_thousand_scorings_a_second(plain):
    pairs = [(Task("?", {"answer": "a"}), "a")] * 10_000
    rates = []
    for _ in range(3):
        began = time.monotonic()
        assert len(plain.score_many(pairs)) == 10_000
        rates.append(round(10_000 / (time.monotonic() - began)))
    print(rates)
    assert max(rates) >= 2000


def test_several_workers_score_at_the_same_time(fresh):
    there = fresh(workers=4)
    there.score_many([(Task("?"), "sleep 0.01")] * 40)
    began = time.monotonic()
    there.score_many([(Task("?"), "sleep 0.1")] * 40)
    assert time.monotonic() - began < 3  # 4 s one after the other


def test_another_interpreter_can_be_lent_the_package(fresh):
    there = fresh(python=sys.executable)
    assert there.score(Task("?", {"answer": "a"}), "a").reward == 1.0


@pytest.mark.parametrize(("value", "hint"), [
    ("yes", "true, false, or settings among workers, timeout_s, python"), ({"worker": 2}, "unknown key worker"),
    ({"workers": 0}, "workers must be a number >= 1, got 0"), ({"timeout_s": 0}, "timeout_s must be a number > 0, got 0"),
    ({"start_s": -1}, "start_s must be a number > 0, got -1"),
    ({"python": "/no/python"}, "/no/python is no program"),
])
def test_bad_settings_are_refused_in_one_line(value, hint):
    with pytest.raises(ConfigError, match=hint) as error:
        Isolation.parse("mine", value)
    assert "env.mine.isolate" in str(error.value) and "\n" not in str(error.value)
    assert Isolation.parse("mine", False) is None and Isolation.parse("mine", {"workers": 2}) == Isolation(workers=2)
