"""Trains a run in processes that this process starts. Everything before and after the training is done in this process.

Not covered: several processes for the evaluation before and after the training.
"""

import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from routed_rl import console
from routed_rl.artifacts import RunFolder, step_of
from routed_rl.config import Config
from routed_rl.errors import CheckpointError, command
from routed_rl.launching.processes import run_processes, wait_for
from routed_rl.launching.slurm import node_command, submit, write_job
from routed_rl.pipeline.build import Parts, take_checkpoint
from routed_rl.pipeline.record import read_config
from routed_rl.rollout import Served
from routed_rl.routing import Router
from routed_rl.tracking import MetricsFile, Tracker

LOGS = "processes"


def process_command(role: str, run: RunFolder, urls: list[str] | None = None) -> list[str]:
    """The command that starts a process of the run, which runs this package's `__main__` in the given role. `urls` are the
    servers that make the run's rollouts."""
    return [sys.executable, "-m", str(__package__), role, str(run.path), *(urls or [])]


def train(parts: Parts, run: RunFolder, router: Router | None, served: Served | None) -> None:
    """Start the processes that train the run, wait for them, and read the trained state into `parts.model` and `router`."""
    urls = served.engine.hand_over() if served is not None else []
    model, device, launch = cast(nn.Module, parts.model), parts.model.device, parts.config.launch
    model.cpu()  # the processes need the memory of the GPUs
    torch.cuda.empty_cache()
    if launch.nodes > 1:
        wait_for(node_command(launch, process_command("node", run, urls)))
    else:
        run_processes(process_command("process", run, urls), launch, run.path / LOGS)
    last, trained = run.require_checkpoint(), MetricsFile(run.metrics).rows()[-1]["step"]
    if step_of(last) < trained:
        raise CheckpointError(f"the checkpoint of the last step, {trained}, was damaged after it was written; to train it again "
                              f"from {last.name}: {command('resume', run.path)}")
    take_checkpoint(parts, router, last)
    model.to(device)


def run_node(folder: str, *urls: str) -> None:
    """Act as one node of a job: start the node's processes and wait for them. `folder` is the run folder, and `urls` are the
    servers that make its rollouts."""
    run = RunFolder.open(folder)
    run_processes(process_command("process", run, list(urls)), read_config(run).launch, run.path / LOGS,
                  node=int(os.environ["SLURM_NODEID"]), address=os.environ["MASTER_ADDR"])


def submit_job(config: Config, run: RunFolder, *, dry_run: bool) -> None:
    """Write the job's script into the run folder and submit it, unless this is a dry run."""
    script = write_job(config.launch, run.path, process_command("job", run))
    console.say(f"job           not submitted; to do so: sbatch {script}" if dry_run else submit(script))


def commands(config: Config, run: RunFolder) -> list[str]:
    """A line for each command that the run starts, with the command and where it runs."""
    launch, processes = config.launch, shlex.join(process_command("process", run))
    servers = ["`vllm serve` beside the command, for the rollouts"] if config.rollout.launch else [
        f"the rollouts: {url}" for url in config.rollout.urls]
    if launch.strategy == "none":
        return ["this process", *servers]
    there = f"{launch.processes} processes: {processes}"
    if launch.where == "here":
        return [f"this machine, {there}", *servers]
    job = [f"first node: {shlex.join(process_command('job', run))}"]
    if launch.nodes > 1:
        job.append(f"first node: {shlex.join(node_command(launch, process_command('node', run)))}")
    return [*job, f"each of {launch.nodes} nodes, {there}", *servers]


@contextmanager
def following(run: RunFolder, tracker: Tracker, every_s: float = 1.0) -> Iterator[None]:
    """Inside the block, while the run trains, pass each new row of the metrics and each new checkpoint to the tracker. The files
    are looked at every `every_s` seconds."""
    file, known, over = MetricsFile(run.metrics), set(run.steps()), threading.Event()
    file.new_rows()

    def tell() -> None:
        for row in file.new_rows():
            tracker.row(row)
        for step in run.steps():
            if step not in known:
                known.add(step)
                tracker.checkpoint(step)

    def follow() -> None:
        while not over.wait(every_s):
            tell()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()
