"""Starting processes: what one of them says comes back as its error, nobody outlives the others, signals go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from routed_rl.config import LaunchConfig
from routed_rl.errors import CheckFailed, ConfigError, LaunchError, RoutedRLError, Stopped
from routed_rl.launching import processes
from routed_rl.launching.processes import run_processes, wait_for
from tests.tiers import tiered

LAUNCH = LaunchConfig(strategy="ddp", processes=2)
RANK = "import os, signal, sys, time; rank = os.environ['RANK']; "


def run(code: str, folder: Path, launch: LaunchConfig = LAUNCH) -> None:
    run_processes([sys.executable, "-c", RANK + code], launch, folder)


def test_every_process_knows_its_place_and_only_the_first_writes_to_the_screen(tmp_path, capfd):
    run("print('I am', rank, os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE'], os.environ['MASTER_ADDR'])", tmp_path)
    assert capfd.readouterr().out.splitlines() == ["I am 0 0 2 127.0.0.1"]
    assert next(tmp_path.glob("*/process-1.out")).read_text() == "I am 1 1 2 127.0.0.1\n"


@pytest.mark.parametrize(("code", "kind"), [(2, RoutedRLError), (4, CheckFailed)])
def test_what_one_process_says_is_the_error_whatever_the_other_does_then(tmp_path, code, kind):
    with pytest.raises(kind, match="^the grader broke; fix it$"):
        run(f"rank == '0' and sys.exit(1); print('error: the grader broke; fix it', file=sys.stderr); sys.exit({code})", tmp_path)


def test_a_killed_process_ends_the_others_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SETTLE_S", 0.5)
    begin = time.monotonic()
    with pytest.raises(LaunchError, match="process 1 of 2 was killed by SIGKILL; was there enough memory"):
        run("rank == '1' and os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)", tmp_path)
    assert time.monotonic() - begin < 20


def test_what_libraries_say_after_an_error_is_not_told_instead_of_it(tmp_path):
    said = b"error: the grader broke; fix it\n[rank0]: W1 destroy_process_group() \xff: not called\n"
    (tmp_path / "process-0.err").write_bytes(said)
    assert str(processes._error({0: 2}, tmp_path, 0, 2, None)) == "the grader broke; fix it"


def test_an_exit_code_that_is_no_stop_is_an_error_and_no_stop():
    for code in (255, 137):
        with pytest.raises(LaunchError, match=f"sh ended with exit code {code}"):
            wait_for(["sh", "-c", f"exit {code}"])
    with pytest.raises(Stopped, match="stopped by SIGUSR1"):
        wait_for(["sh", "-c", f"exit {128 + signal.SIGUSR1}"])


@pytest.mark.slow
def test_a_bug_in_a_process_shows_its_traceback(tmp_path, capfd):
    with pytest.raises(ChildProcessError, match="process 1 of 2 failed"):
        run("rank == '1' and 1 / 0; time.sleep(60)", tmp_path)
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("number", tiered([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], slow=[signal.SIGUSR1, signal.SIGINT]))
def test_a_signal_goes_on_to_every_process_and_they_may_end_in_peace(tmp_path, number):
    """Ctrl-C as SIGTERM, which the processes wait for while they train."""
    told = signal.SIGTERM if number == signal.SIGINT else number
    threading.Timer(1.5, os.kill, (os.getpid(), number)).start()
    with pytest.raises(Stopped) as stopped:
        run(f"signal.signal({told:d}, lambda *_: (open('{tmp_path}/told-' + rank, 'w').close(), time.sleep(1), sys.exit(0))); "
            "time.sleep(60)", tmp_path / "logs")
    assert stopped.value.signal == number
    assert (tmp_path / "told-0").exists() and (tmp_path / "told-1").exists()


@pytest.mark.slow
def test_a_second_interrupt_does_not_wait_and_a_process_that_ignores_them_still_does(tmp_path):
    """The worker of a comparison ignores them; the comparison itself ends it."""
    for seconds in (1.5, 2.5):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", tmp_path)
    assert time.monotonic() - begin < 20
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        run("time.sleep(1.5)", tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_not_told_as_the_signal_that_the_processes_got(tmp_path):
    (tmp_path / "process-0.err").write_text("stopped: stopped by SIGTERM after step 3, with a checkpoint; to go on: resume\n")
    found = processes._error({0: 143}, tmp_path, 0, 1, signal.SIGINT)
    assert isinstance(found, Stopped) and found.signal == signal.SIGINT
    assert str(found) == "stopped by SIGINT after step 3, with a checkpoint; to go on: resume"


@pytest.mark.slow
def test_who_does_not_end_in_time_is_killed(tmp_path):
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    begin = time.monotonic()
    with pytest.raises((Stopped, LaunchError)):
        run("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", tmp_path,
            LaunchConfig(strategy="ddp", processes=2, grace_s=1))
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(("settings", "message"), [
    ({"offload": True}, "offload=true is refused"), ({"processes": 2}, "launch.strategy"), ({"strategy": "ddd"}, "choose from"),
    ({"strategy": "ddp", "nodes": 2}, "launch=slurm launch.nodes=2"), ({"processes": 0}, "launch.processes")])
def test_what_cannot_be_launched_is_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        LaunchConfig(**settings)
    assert "\n" not in str(caught.value)
