"""The processes of a run on one machine, started as torchrun starts them: they find each other by MASTER_ADDR and MASTER_PORT.

Signals go on to them, a failure of one ends all, and what went wrong comes back as the error that the process itself said.
The first process writes to the screen, what the others write is in files. Not covered: restarts; `resume` goes on.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing import (
    LogsDest,
    LogsSpecs,
    ProcessFailure,
    SignalException,
    SubprocessContext,
    start_processes,
)

from routed_rl.config import LaunchConfig
from routed_rl.errors import CheckFailed, LaunchError, RoutedRLError, Stopped
from routed_rl.stopping import PARENT, SIGNALS
from routed_rl.web import free_port

POLL_S = 0.2
SETTLE_S = 5.0
"""For a process to say what went wrong where another one, which lost it, has failed first."""


class Logs(LogsSpecs):
    """Errors into a file for each process, output too but for the first one's."""

    def __init__(self, folder: Path, first: int) -> None:
        super().__init__()
        self.folder, self.first = folder, first

    @property
    def root_log_dir(self) -> str:
        return str(self.folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        self.folder.mkdir(parents=True)
        out = {local: "" if self.first + local == 0 else str(self.path(local, "out")) for local in envs}
        return LogsDest(stdouts=out, stderrs={local: str(self.path(local, "err")) for local in envs},
                        error_files={local: str(self.path(local, "json")) for local in envs})

    def path(self, local: int, kind: str) -> Path:
        return self.folder / f"process-{self.first + local}.{kind}"


def run_processes(command: list[str], launch: LaunchConfig, folder: Path, node: int = 0, address: str = "127.0.0.1") -> None:
    """Run `command` in `launch.processes` processes of this machine, the `node`-th of `launch.nodes`, to their end.

    Raises what the process that failed first said: RoutedRLError, CheckFailed, Stopped; LaunchError where it was killed,
    ChildProcessError where it is a bug.
    """
    first = node * launch.processes
    logs = Logs(folder / f"{datetime.now().strftime('%Y-%m-%d-%H%M%S-%f')}-node{node}", first)
    port = launch.port if launch.nodes > 1 else free_port()
    environments = {local: process_variables(launch, first + local, local, address, port) for local in range(launch.processes)}
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # The context would raise at a signal; here signals go on to the processes, which end their step first.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP"
    arguments = {local: tuple(command[1:]) for local in environments}
    context = start_processes("routed_rl", command[0], arguments, environments, logs)
    assert isinstance(context, SubprocessContext)
    try:
        with _forwarding(context.pids().values()) as asked:
            failures = _wait(context, lambda: bool(asked) and time.monotonic() - asked[0][1] > launch.grace_s)
    except (KeyboardInterrupt, SignalException):
        context.close(signal.SIGKILL)
        raise KeyboardInterrupt from None
    if failures:
        raise _error(failures, logs, launch.world, asked[0][0] if asked else None)
    if asked:
        raise Stopped(f"stopped by {signal.Signals(asked[0][0]).name}", asked[0][0])


def process_variables(launch: LaunchConfig, rank: int, local: int, address: str, port: int) -> dict[str, str]:
    """What torch, accelerate and DeepSpeed read."""
    cores = len(os.sched_getaffinity(0))
    return {"RANK": str(rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(launch.world),
            "LOCAL_WORLD_SIZE": str(launch.processes), "MASTER_ADDR": address, "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // launch.processes))),
            PARENT: str(os.getpid())}


@contextmanager
def _forwarding(pids: Iterable[int]) -> Iterator[list[tuple[int, float]]]:
    """Hand signals on; yields which ones came, and when."""
    came: list[tuple[int, float]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append((number, time.monotonic()))
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {each: signal.signal(each, forward) for each in SIGNALS}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def wait_for(command: list[str]) -> None:
    """Run one command that starts the processes elsewhere, to its end; signals go on to it. Stopped, or LaunchError."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        with _forwarding([process.pid]) as asked:
            code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        raise
    if code > 128 or asked:
        number = asked[0][0] if asked else code - 128
        raise Stopped(f"stopped by {signal.Signals(number).name}", number)
    if code:
        raise LaunchError(f"{command[0]} ended with exit code {code}; what the processes said is in the run's folder, processes/")


def _wait(context: SubprocessContext, overdue: Callable[[], bool]) -> dict[int, ProcessFailure]:
    """Until all have ended, or one has failed and the others were ended."""
    processes, settled = [handler.proc for handler in context.subprocess_handlers.values()], math.inf
    while any(process.poll() is None for process in processes) and time.monotonic() < settled:
        if overdue():
            context.close(signal.SIGKILL)
        if settled == math.inf and any(process.poll() for process in processes):
            settled = time.monotonic() + SETTLE_S
        time.sleep(POLL_S)
    result = context.wait(0)
    assert result is not None
    return result.failures


def _error(failures: dict[int, ProcessFailure], logs: Logs, world: int, asked: int | None) -> Exception:
    """What the process that failed of itself said; those that lost it, or were ended for it, failed too and say less."""
    local = min(failures, key=lambda local: _rank_of(failures[local].exitcode))
    code, file = failures[local].exitcode, logs.path(local, "err")
    said = _last_line(file)
    if code == 2:
        return RoutedRLError(said)
    if code == 4:
        return CheckFailed(said)
    if code > 128:
        return Stopped(said, asked or code - 128)
    name = f"process {logs.first + local} of {world}"
    if code < 0:
        hint = "; was there enough memory?" if code == -signal.SIGKILL else ""
        return LaunchError(f"{name} was killed by {signal.Signals(-code).name}{hint} What it wrote: {file}")
    sys.stderr.write(file.read_text())
    return ChildProcessError(f"{name} failed, see above and {file}")


def _rank_of(code: int) -> int:
    """Deliberate ends first, then kills, then crashes, and last what a lost or ended process does."""
    if code in (2, 4):
        return 0
    if code < 0 and code != -signal.SIGTERM:
        return 1
    return 2 if code == 1 else 3


def _last_line(file: Path) -> str:
    """Without its `error:`."""
    lines = file.read_text().strip().splitlines() or ["it said nothing"]
    return lines[-1].partition(": ")[2] or lines[-1]
