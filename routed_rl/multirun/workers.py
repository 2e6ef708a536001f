"""Runs jobs, a few at a time, in processes that import the libraries once and stay. Not covered: several machines.

If a run fails, or its process dies, the failure is reported and the other runs continue.
"""

import gc
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from routed_rl import console
from routed_rl.config import Config
from routed_rl.config.references import masked
from routed_rl.errors import RoutedRLError, RunsFailed
from routed_rl.guard import die_with
from routed_rl.multirun.job import Job, is_finished, of_one_date, train_or_resume, try_out

Execute = Callable[[Config, list[str]], object]
"""Function that trains one run into `config.out`, from its config and overrides. It must be importable by name. A caller that
runs jobs elsewhere passes another function."""
Ended = Callable[[Job, str | None], None]
"""Function that is called when a job has ended, with the job and the reason why it failed (None if it succeeded)."""
Stop = Callable[[Job], str | None]
"""Function that is called every `POLL_S` seconds for each job in progress. It returns the reason to end the job now, or None."""
POLL_S = 1.0


class Worker:
    """A process that runs one job after another. `jobs` is the number of such processes, which share the CPU cores."""

    def __init__(self, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, os.getpid(), jobs))
        self.process.start()
        # Our copy of the worker's end must be closed: only then does the worker's death read as the end of the file.
        theirs.close()
        self.job: Job | None = None
        """The job in progress; None if the process is idle."""

    def begin(self, execute: Execute, job: Job, logs: Path) -> None:
        self.job = job
        with suppress(BrokenPipeError):  # the process has died, which `outcome` tells
            self.connection.send((execute, job.config, job.overrides, str(logs / f"{job.name}.log")))

    def outcome(self) -> str | None:
        """Wait for the end of the job. Returns the reason why it failed, or None."""
        self.job = None
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):  # reset: it died before it read the job
            self.process.join()
            return f"its process died (exit code {self.process.exitcode}); was there enough memory?"

    def stop(self) -> None:
        """End the process at once. A run in progress can be resumed later."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


def run_all(jobs: Iterable[Job], count: int, execute: Execute, at_once: int, logs: Path, verb: str, *,
            ended: Ended = lambda _job, _problem: None, stop: Stop | None = None, first: Iterable[Job] = ()) -> dict[str, str]:
    """Run `count` jobs, at most `at_once` at a time, each by `execute`. Returns {job: its problem} for those that failed. The
    output of each job goes to a file in `logs`; `verb` is the name of the work on the progress bar.

    A job is taken from `jobs` only when a process is idle. `ended` is called when a job has ended, so a later job may depend on
    the results of earlier ones. If `stop` returns a reason, the job and its process are ended. The jobs in `first` that have no
    folder yet are tried out before any job is trained; RoutedRLError if one of them cannot begin. No job is tried out if
    `execute` is not `train_or_resume`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, failed, done = iter(jobs), dict[str, str](), 0
    workers = [Worker(at_once) for _ in range(min(at_once, count))]
    try:
        tried = [job for job in first if not job.folder.path.exists()] if execute is train_or_resume else []
        if tried:
            console.say(f"{verb}: trying out whether {len(tried)} run{'s' if len(tried) > 1 else ''} can begin")
            _try_each(tried, workers[0], logs, verb)
        with console.progress(verb, "runs") as advance:
            advance(0, count)
            while True:
                for worker, job in zip([worker for worker in workers if worker.job is None], waiting, strict=False):
                    worker.begin(execute, job, logs)
                busy = {worker.connection: (worker, worker.job) for worker in workers if worker.job is not None}
                if not busy:
                    return failed
                ready = wait(list(busy), None if stop is None else POLL_S)
                for connection, (worker, job) in busy.items():
                    if connection in ready:
                        if problem := worker.outcome():
                            failed[job.name] = problem
                            console.say(f"{job.name} failed: {problem}; see {logs / job.name}.log")
                    elif stop is not None and (problem := stop(job)):
                        worker.stop()
                    else:
                        continue
                    if not worker.process.is_alive():
                        workers[workers.index(worker)] = Worker(at_once)
                    ended(job, problem)
                    done += 1
                    advance(done, count, job.name)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("the same command goes on where this one stopped")
        raise
    finally:
        for worker in workers:
            worker.stop()


def _try_each(jobs: Sequence[Job], worker: Worker, logs: Path, verb: str) -> None:
    """Raise RoutedRLError if one of the jobs cannot begin. On a terminal a bar moves meanwhile, because the worker imports the
    libraries first."""
    with console.progress(f"{verb}: trying out", "runs") as advance:
        for place, job in enumerate(jobs):
            advance(place, len(jobs), job.name)
            worker.begin(try_out, job, logs)
            if problem := worker.outcome():
                raise RoutedRLError(f"{job.name} cannot begin, and nothing was trained: {problem}")


def run_missing(jobs: Sequence[Job], execute: Execute, at_once: int, logs: Path, verb: str, another: str = "--out"
                ) -> dict[str, str]:
    """Run the jobs that are not finished yet, as `run_all` does. `another` is the option by which a user chooses another folder;
    error messages name it. Returns {job: its problem} for those that failed."""
    missing = [job for job in of_one_date(jobs) if not is_finished(job, another)]
    console.say(f"{verb}: {len(jobs)} runs, {len(jobs) - len(missing)} of them done already, {at_once} at a time; logs in {logs}")
    first = [*{job.arm: job for job in reversed(missing)}.values()][::-1]
    return run_all(missing, len(missing), execute, at_once, logs, verb, first=first) if missing else {}


def refuse_failed(failed: dict[str, str], count: int, logs: Path) -> None:
    """Raise RunsFailed if any of `count` jobs failed; `failed` maps their names to their problems."""
    if failed:
        raise RunsFailed(f"{len(failed)} of {count} runs failed: {', '.join(failed)}; see {logs}; the same command tries them "
                            "again")


def _serve(connection: Connection, parent: int, jobs: int) -> None:
    """The loop of a worker process, which ends when the other end of the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    with suppress(EOFError):
        while True:
            execute, config, overrides, log = connection.recv()
            # Redirects all that this process prints, native libraries included.
            with open(log, "a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            problem = None
            try:
                execute(config, overrides)
            except Exception as error:
                print(masked(traceback.format_exc()), file=sys.stderr, flush=True)
                name = "" if isinstance(error, RoutedRLError) else f"{type(error).__name__}: "
                problem = " ".join(masked(f"{name}{error}").split())[:300]
            sys.stdout.flush()  # into this job's log, not into the next one's
            connection.send(problem)
            gc.collect()
