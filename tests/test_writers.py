"""One writer at a time for a folder: who is second is told who is first, and whoever died is in nobody's way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from routed_rl.artifacts import LOCK, RunFolder, alone_in, alone_making
from routed_rl.cli.compose import compose
from routed_rl.errors import RunFolderError
from routed_rl.export.publish import publish
from routed_rl.multirun.calibrate import calibrate
from routed_rl.multirun.compare import compare
from routed_rl.multirun.sweep import sweep
from routed_rl.multirun.trials import Dimension
from tests import pipeline
from tests.parts import typed, write_parts

HOLD = ("import sys, time; from pathlib import Path; from routed_rl.artifacts import alone_in\n"
        "with alone_in(Path(sys.argv[2])): print('held', flush=True); time.sleep(600)")


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, "resume", str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_is_first_and_takes_over_when_that_one_was_killed(holder, tmp_path):
    said = rf"run is being written by `-c resume` \(process {holder.pid} on {socket.gethostname()}, since 20\d\d-.*; wait"
    with pytest.raises(RunFolderError, match=said), alone_in(tmp_path / "run"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with alone_in(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()
    assert not list((tmp_path / "run").iterdir())


def test_a_forked_child_that_lives_on_holds_nothing(tmp_path):
    with alone_in(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with alone_in(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("text", [b"", b"[1]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_whatever_stands_in_a_lock_it_is_the_kernel_that_says_whether_it_is_held(tmp_path, text):
    lock = tmp_path / LOCK
    lock.write_bytes(text)
    with alone_in(tmp_path):
        lock.write_bytes(text)
        with pytest.raises(RunFolderError, match="being written by another process"), alone_in(tmp_path):
            pass


def _run(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    return folder


BUSY = {
    "resume": lambda out, typed: pipeline.resume(str(_run(out)), [], compose),
    "rollback": lambda out, typed: pipeline.rollback(str(_run(out)), 0, [], False, [], compose),
    "discard": lambda out, typed: pipeline.discard(str(_run(out)), f"{out}/deployed"),
    "export": lambda out, typed: pipeline.export(str(_run(out)), None, None, f"{out}/policy"),
    "job": lambda out, typed: pipeline.run_job(str(_run(out))),
    "compare": lambda out, typed: compare(typed, ["none"], 1, str(out), 1, [], compose),
    "sweep": lambda out, typed: sweep([f"out={out}", *typed], [Dimension("seed", ["0", "1"])], compose),
    "calibrate": lambda out, typed: calibrate(typed, [], 5, 0.01, str(out), 1, compose),
}


@pytest.mark.parametrize("verb", BUSY)
def test_each_verb_that_writes_into_a_folder_is_refused_while_another_one_does(tmp_path, verb):
    with alone_in(tmp_path / "out"), pytest.raises(RunFolderError, match="is being written by"):
        BUSY[verb](tmp_path / "out", typed(tmp_path, tmp_path / "none")[1:])


def test_what_becomes_whole_in_one_step_has_one_maker(tmp_path):
    with alone_making(tmp_path / "out"):
        with pytest.raises(RunFolderError, match="out is being written by"):
            publish(tmp_path / "out", lambda folder: None)
        with pytest.raises(RunFolderError, match="out is being written by"):
            pipeline.extract(compose([f"out={tmp_path}/out"]), [], check=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [["overrides.txt"], ["overrides.txt", ".manifest.json.partial"],
                                  ["overrides.txt", "manifest.json", ".config.yaml.lock", ".config.yaml.partial"]])
def test_a_run_that_was_killed_as_it_began_is_begun_again_in_its_folder_and_files_of_others_are_not_touched(tmp_path, left):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for name in left:
        (run.path / name).touch()
    with pytest.raises(RunFolderError, match="already holds files"):
        run.refuse_if_taken()
    (run.path / LOCK).touch()
    run.refuse_if_taken()
    (run.path / "notes.txt").touch()
    with pytest.raises(RunFolderError, match="already holds files"):
        run.refuse_if_taken()


def test_a_run_that_began_while_another_was_loading_is_not_written_over(tmp_path, monkeypatch):
    """Both find the folder free, and both load."""
    parts, out = write_parts(tmp_path / "parts"), tmp_path / "run"
    real = pipeline.train.__globals__["prepared"]

    def slow(*args, **kwargs):
        found = real(*args, **kwargs)
        _run(out)
        return found

    monkeypatch.setitem(pipeline.train.__globals__, "prepared", slow)
    overrides = typed(parts, out)
    with pytest.raises(RunFolderError, match="already holds a run"):
        pipeline.train(compose(overrides), overrides)
    assert [path.name for path in out.iterdir()] == ["config.yaml"]
