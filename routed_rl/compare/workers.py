"""Runs, a few at a time, each in a process that imports once and stays. Not covered: several machines.

A run that fails, or takes its process down, is reported and the others go on.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from routed_rl import console
from routed_rl.compare.arms import Run
from routed_rl.config import Config
from routed_rl.stopping import die_with

Execute = Callable[[Config, list[str]], object]
"""Trains one run into `config.out`; must be importable by name."""


@dataclass
class Worker:
    """A process that does one run after the other."""

    process: SpawnProcess
    connection: Connection

    @classmethod
    def start(cls, jobs: int) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, os.getpid(), jobs))
        process.start()
        # Our copy of its end must go: only then does its death read as the end of the file.
        theirs.close()
        return cls(process, ours)

    def stop(self) -> None:
        """End it at once; a run in progress can be resumed."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


def run_all(runs: list[Run], execute: Execute, jobs: int, logs: Path) -> dict[str, str]:
    """Do every run, at most `jobs` at a time; {run: what went wrong} for those that failed."""
    logs.mkdir(parents=True, exist_ok=True)
    waiting, failed, done = deque(runs), dict[str, str](), 0
    workers = [Worker.start(jobs) for _ in range(min(jobs, len(runs)))]
    busy: dict[Connection, tuple[Worker, Run]] = {}
    try:
        with console.progress("compare", "runs") as advance:
            advance(0, len(runs))
            while waiting or busy:
                idle = [worker for worker in workers if worker.connection not in busy]
                for worker in idle[:len(waiting)]:
                    run = waiting.popleft()
                    worker.connection.send((execute, run.config, run.overrides, str(logs / f"{run.name}.log")))
                    busy[worker.connection] = worker, run
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    worker, run = busy.pop(ready)
                    if problem := _outcome(worker, workers, jobs):
                        failed[run.name] = problem
                        console.say(f"{run.name} failed: {problem}; see {logs / run.name}.log")
                    done += 1
                    advance(done, len(runs), run.name)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("the same command goes on where this one stopped")
        raise
    finally:
        for worker in workers:
            worker.stop()
    return failed


def _outcome(worker: Worker, workers: list[Worker], jobs: int) -> str | None:
    """What went wrong with the run that this worker has ended; a worker that died is replaced."""
    try:
        return worker.connection.recv()
    except EOFError:
        worker.process.join()
        workers[workers.index(worker)] = Worker.start(jobs)
        return f"its process died (exit code {worker.process.exitcode}); was there enough memory?"


def _serve(connection: Connection, parent: int, jobs: int) -> None:
    """The worker's loop, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    with suppress(EOFError):
        while True:
            execute, config, overrides, log = connection.recv()
            _redirect_output(log)
            connection.send(_attempt(execute, config, overrides))
            gc.collect()


def _attempt(execute: Execute, config: Config, overrides: list[str]) -> str | None:
    try:
        execute(config, overrides)
        return None
    except Exception as error:
        traceback.print_exc()
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _redirect_output(log: str) -> None:
    """Send everything this process prints, native libraries included, to the end of `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
