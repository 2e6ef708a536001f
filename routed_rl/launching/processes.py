"""Starts the processes of a run on one machine, in the way of torchrun: they find each other by MASTER_ADDR and MASTER_PORT.

Signals are passed on to the processes, Ctrl-C as SIGTERM. If one of them fails, all are ended, and the error message of the
failed process is raised here. The first process writes to the screen, the others write to files. Not covered: restarts; use
`resume`.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType

from routed_rl.config import LaunchConfig
from routed_rl.errors import CheckFailed, LaunchError, RoutedRLError, Stopped
from routed_rl.stopping import PARENT, SIGNALS, WAIT
from routed_rl.web import free_port

POLL_S = 0.2
SETTLE_S = 5.0
"""Seconds that the other processes have to report their own errors after one has failed. The first to fail may only have lost
contact with the process that caused the failure."""
END_S = 30.0
"""Seconds for the other processes to end after one has failed."""
TOLD = ("error: ", "stopped: ", "halted: ")
"""The beginnings of the line in which a process says why it ends."""
Processes = list[subprocess.Popen[bytes]]


def run_processes(command: list[str], launch: LaunchConfig, folder: Path, node: int = 0, address: str = "127.0.0.1") -> None:
    """Run `command` in `launch.processes` processes on this machine, which is node number `node` of `launch.nodes`, and wait for
    their end. `address` is that of the first node. The stderr of every process, and the stdout of every process but the first, go
    to files in a new folder inside `folder`.

    Raises the error that the first failed process reported: RoutedRLError, CheckFailed or Stopped; LaunchError if the process was
    killed, ChildProcessError if a bug ended it.
    """
    first, port = node * launch.processes, launch.port if launch.nodes > 1 else free_port()
    logs = folder / f"{datetime.now().strftime('%Y-%m-%d-%H%M%S-%f')}-node{node}"
    logs.mkdir(parents=True)
    processes: Processes = []
    try:
        for local in range(launch.processes):
            rank = first + local
            variables = process_variables(launch, rank, local, address, port)
            with open(logs / f"process-{rank}.out", "w") as out, open(logs / f"process-{rank}.err", "w") as err:
                processes.append(subprocess.Popen(command, env=os.environ | variables, stdout=out if rank else None, stderr=err,
                                                  start_new_session=True))
        with _forwarding(processes) as asked:
            failures = _wait(processes, asked, launch.grace_s)
    finally:
        _end(processes, signal.SIGKILL)
    if failures:
        raise _error(failures, logs, first, launch.world, asked[0][0] if asked else None)
    if asked:
        raise Stopped(f"stopped by {signal.Signals(asked[0][0]).name}", asked[0][0])


def process_variables(launch: LaunchConfig, rank: int, local: int, address: str, port: int) -> dict[str, str]:
    """The environment variables that torch, accelerate and DeepSpeed read. `rank` is the number of the process among all, `local`
    its number on this machine; `address` and `port` are where the processes find each other."""
    return {"RANK": str(rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(launch.world),
            "LOCAL_WORLD_SIZE": str(launch.processes), "MASTER_ADDR": address, "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // launch.processes))),
            PARENT: str(os.getpid())}


@contextmanager
def _forwarding(processes: Processes) -> Iterator[list[tuple[int, float]]]:
    """Inside the block, the signals `SIGNALS` are passed on to `processes`, which finish their step before they end. The first
    Ctrl-C is passed on as SIGTERM, unless this process ignores it; a second one raises KeyboardInterrupt. Yields the list of the
    signals that came, with their times."""
    came: list[tuple[int, float]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if came:
                raise KeyboardInterrupt
            os.write(2, WAIT)
        came.append((number, time.monotonic()))
        for process in processes:
            process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    before = {each: signal.signal(each, forward) for each in (*SIGNALS, *([] if ignored else [signal.SIGINT]))}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def wait_for(command: list[str]) -> None:
    """Run a command, such as srun, that starts the processes of a run elsewhere. Wait for its end, and pass signals on to it.
    Raises Stopped if a signal ended it, LaunchError if it failed."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        with _forwarding([process]) as asked:
            code = process.wait()
    finally:
        process.terminate()  # if it has not ended
    if asked or code - 128 in (*SIGNALS, signal.SIGINT):
        number = asked[0][0] if asked else code - 128
        raise Stopped(f"stopped by {signal.Signals(number).name}", number)
    if code:
        raise LaunchError(f"{command[0]} ended with exit code {code}; what the processes said is in the run's folder, processes/")


def _wait(processes: Processes, asked: list[tuple[int, float]], grace_s: float) -> dict[int, int]:
    """Wait until all processes have ended. If one fails, the others are ended. If `grace_s` seconds have passed since the first
    signal in `asked`, all are killed. Returns the exit codes of the processes that failed, by local rank."""
    settled = math.inf
    while any(process.poll() is None for process in processes) and time.monotonic() < settled:
        if asked and time.monotonic() - asked[0][1] > grace_s:
            _end(processes, signal.SIGKILL)
        if settled == math.inf and any(process.poll() for process in processes):
            settled = time.monotonic() + SETTLE_S
        time.sleep(POLL_S)
    failures = {local: process.returncode for local, process in enumerate(processes) if process.poll()}
    _end(processes, signal.SIGTERM)
    give_up = time.monotonic() + END_S
    while any(process.poll() is None for process in processes) and time.monotonic() < give_up:
        time.sleep(POLL_S)
    return failures


def _end(processes: Processes, number: signal.Signals) -> None:
    """Send a signal to the processes that run, and to all that they started."""
    for process in processes:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _error(failures: dict[int, int], logs: Path, first: int, world: int, asked: int | None) -> Exception:
    """Return the error to raise for `failures`, which maps local ranks to exit codes. It is the error of the process that failed
    by itself, read from its file in `logs`. Other processes failed because they lost contact with it or were ended, and their
    errors say less. `first` is the number of this machine's first process among all `world`; `asked` is the signal that came, if
    any."""
    def later(local: int) -> tuple[bool, bool, bool]:
        """Sort key: deliberate ends come first, then kills, then crashes, and last the errors of processes that lost contact or
        were ended."""
        code = failures[local]
        return code not in (2, 4), code >= 0 or code == -signal.SIGTERM, code != 1

    local = min(failures, key=later)
    code, file = failures[local], logs / f"process-{first + local}.err"
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = text.strip().splitlines() or ["it said nothing"]
    told = next((line for line in reversed(lines) if line.startswith(TOLD)), lines[-1])  # libraries may speak after it
    said = told.partition(": ")[2] or told
    if code in (2, 4):
        return RoutedRLError(said) if code == 2 else CheckFailed(said)
    if code > 128:
        if asked == signal.SIGINT:
            said = said.replace("SIGTERM", "SIGINT")  # which the processes got in its place
        return Stopped(said, asked or code - 128)
    name = f"process {first + local} of {world}"
    if code < 0:
        hint = "; was there enough memory?" if code == -signal.SIGKILL else ""
        return LaunchError(f"{name} was killed by {signal.Signals(-code).name}{hint}; its output is in {file}")
    sys.stderr.write(text)
    return ChildProcessError(f"{name} failed, see above and {file}")
