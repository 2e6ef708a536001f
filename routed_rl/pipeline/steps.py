"""Trains the steps of a run under the monitor, from the run's newest checkpoint on, in this process or in several."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from routed_rl import console
from routed_rl.artifacts import RunFolder, remove, step_of
from routed_rl.config import AUTO, Config
from routed_rl.errors import LaunchError, RolloutError, Stopped, command
from routed_rl.monitor import Monitor
from routed_rl.pipeline import halting, launched
from routed_rl.pipeline.answers import copy_base_answers
from routed_rl.pipeline.build import Parts, load_parts, make_router, run_subspace
from routed_rl.pipeline.measuring import measure_during
from routed_rl.pipeline.record import fresh_from_step, inherited, read_config
from routed_rl.pipeline.serving import joining, route_served
from routed_rl.ranks import RANKS
from routed_rl.rollout import ParityCheck, Served
from routed_rl.routing import Router
from routed_rl.stopping import STOP
from routed_rl.tracking import MetricsFile, Tracker
from routed_rl.training.backends import join
from routed_rl.training.build import build_trainer
from routed_rl.training.completions import forget_after
from routed_rl.training.plan import Plan, make_plan
from routed_rl.training.watch import Watch


def train_steps(parts: Parts, plan: Plan, router: Router | None, served: Served | None, parity: ParityCheck | None,
                tracker: Tracker) -> int:
    """Train from the newest complete checkpoint to the last step, in this process or in several; returns the step of that
    checkpoint, or 0. Everything that the run wrote after that checkpoint is removed first. Raises `Halted` if the monitor
    halts."""
    run = plan.run
    newest, skipped = run.last_checkpoint()
    for line in skipped:
        console.say(line)
    step = step_of(newest) if newest else 0
    if newest:
        console.say(f"going on from {newest.name}")
    MetricsFile(run.metrics).truncate(step)
    MetricsFile(run.verdicts).truncate(step)
    forget_after(run.completions, step)
    forget_results(run)
    forget_deployed(run, discard=parts.config.discard)
    halting.put_aside(run, step)
    tracker.begin(step)
    watch = _watch(parts.config, run)
    if watch.halting:  # the process was killed between the checkpoint of a halt and its record
        halting.halt(run, watch.halting, parts.config, tracker)
    if parts.config.launch.strategy == "none":
        _train_here(parts, plan, router, watch, newest, served, parity, tracker)
    else:
        with launched.following(run, tracker):
            launched.train(parts, run, router, served)
        watch = _watch(parts.config, run)
    if watch.halting:
        halting.halt(run, watch.halting, parts.config, tracker)
    return step


def forget_results(run: RunFolder) -> None:
    """Remove the run's summary, and the evaluations and answers of its trained models, because training more steps makes them
    outdated."""
    run.summary.unlink(missing_ok=True)
    for model in ("policy", "deployed"):
        (run.path / f"evaluation-{model}.json").unlink(missing_ok=True)
    copy_base_answers(run, run)


def forget_deployed(run: RunFolder, *, discard: bool) -> None:
    """If `discard` is true, remove RUN/deployed, because the run writes it anew at its end. If `discard` is false, the run does
    not write this folder, so it stays, and a line says that it holds a model of fewer steps than the run."""
    if not run.deployed.exists():
        return
    if not discard:
        console.say(f"{run.deployed} stays as it is (discard=false), and will hold a model of fewer steps than this run")
        return
    console.say(f"removing {run.deployed} until the run ends")
    remove(run.deployed)


@contextmanager
def saying_how_to_go_on(run: RunFolder) -> Iterator[None]:
    """Inside the block, the message of a RolloutError, a LaunchError or a signal, after which the run can continue, also says how
    to continue it."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as interrupt:
        interrupt.add_note(f"to go on: {command('resume', run.path)}")
        raise
    except (RolloutError, LaunchError) as error:
        whole, _ = run.last_checkpoint()
        place = whole.name if whole else "the start"
        raise type(error)(f"{error}; to go on from {place}: {command('resume', run.path)}") from error


def _watch(config: Config, run: RunFolder) -> Watch:
    """Make the monitor of a run, and let it judge all rows of metrics that the run has written so far."""
    watch = Watch(Monitor(config.monitor, inherited(run)), run, decides=config.routing.practice.environments == AUTO)
    watch.replay(MetricsFile(run.metrics).rows(), halting.halted_steps(run), fresh_from_step(run))
    return watch


def _train_here(parts: Parts, plan: Plan, router: Router | None, watch: Watch, newest: Path | None, served: Served | None,
                parity: ParityCheck | None, tracker: Tracker | None = None) -> None:
    """Train in this process, alone or as one of several, from the checkpoint `newest` on (None: from the start). A signal stops
    the training after a checkpoint; Stopped is raised then."""
    with console.progress("train", "steps") as advance, STOP.stepping():
        trainer = build_trainer(plan, parts.learner, parts.tokenizer, parts.trained, router, watch=watch,
                                callbacks=[Telling(advance, tracker)], fresh_from=fresh_from_step(plan.run), served=served,
                                parity=parity, evaluator=partial(measure_during, parts, router, served),
                                listener=tracker.row if tracker else None)
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        # The trainer asks at the end of each step; a signal may also come while it writes the last checkpoint.
        stopped = trainer.stopped or max(RANKS.gather(STOP.asked or 0))
    if stopped:
        name, step = signal.Signals(stopped).name, trainer.state.global_step
        raise Stopped(f"stopped by {name} after step {step}, with a checkpoint; to go on: {command('resume', plan.run.path)}",
                      stopped)


def work(folder: str, *urls: str) -> None:
    """Act as one process of a launched run: train, with the files that the starting command has written into `folder`. `urls` are
    the servers that make the rollouts."""
    transformers_logging.set_verbosity_error()
    run = RunFolder.open(folder)
    config = read_config(run)
    join(config.launch)  # first, because it sets which GPU belongs to this process
    parts, plan = load_parts(config), make_plan(config, run)  # ZeRO-3 shards whatever is loaded after its settings exist
    newest, _ = run.last_checkpoint()
    watch = _watch(config, run)
    subspace = run_subspace(parts, run)
    with saying_how_to_go_on(run), joining(parts, subspace, list(urls)) as served:
        router = make_router(parts, subspace, inherited(run))
        _train_here(parts, plan, router, watch, newest, served, route_served(parts, served, router))


class Telling(TrainerCallback):
    """Moves the progress bar, in place of TRL's own, and reports each checkpoint to the tracker once it is complete."""

    def __init__(self, advance: console.Advance, tracker: Tracker | None) -> None:
        self.advance, self.tracker = advance, tracker

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            reward, norm = logs.get("reward"), logs.get("quarantine/norm")
            note = " ".join([f"reward {reward:.2f}" if reward is not None else "", f"|C| {norm:.2f}" if norm else ""])
            self.advance(state.global_step, state.max_steps, note.strip())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.tracker:
            self.tracker.checkpoint(state.global_step)
