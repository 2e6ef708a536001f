"""Chooses the trackers that `trainer.report_to` names, and keeps a run going if a tracker fails."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.config import TrackingConfig
from routed_rl.errors import ConfigError, Halted
from routed_rl.tracking.tracker import Tracker

PACKAGES = {"wandb": ("wandb",), "trackio": ("trackio",), "tensorboard": ("tensorboardX", "tensorboard")}
"""For each tracker, packages of which one must be installed. If none is, the error message proposes to install the first."""


def split_report_to(report_to: str | list[str] | None) -> tuple[bool, list[str]]:
    """Return whether `report_to` names wandb, and the other trackers that it names, which transformers' own callbacks serve.
    ConfigError for a tracker that is not known or not installed."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(f"trainer.report_to={name} is not supported; choose from none, {', '.join(PACKAGES)}, or write "
                              "several as [wandb,tensorboard]")
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise ConfigError(f"trainer.report_to={name} needs a package that is not installed: pip install {PACKAGES[name][0]}")
    return "wandb" in names, [name for name in names if name != "wandb"]


def guarded(tracker: Tracker) -> Tracker:
    """Change a tracker so that it passes reports on until one fails, and return it. The failure is printed in one line, and the
    run continues without the tracker."""
    failures: list[Exception] = []

    def guard(tell: Callable[..., None]) -> Callable[..., None]:
        def call(*told: Any) -> None:
            if failures:
                return
            try:
                tell(*told)
            except Exception as error:
                failures.append(error)
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                console.say(f"tracking stopped, the run goes on: {reason}")

        return call

    for name in (name for name in vars(Tracker) if not name.startswith("_")):
        setattr(tracker, name, guard(getattr(tracker, name)))
    return tracker


@contextmanager
def tracked(run: RunFolder, config: TrackingConfig, report_to: str | list[str] | None) -> Iterator[Tracker]:
    """Yield the tracker of one command. At the end the tracker gets the result of the command as an exit code: 0 done, 3 halted,
    1 anything else."""
    wandb, _ = split_report_to(report_to)
    if not wandb:
        yield Tracker()
        return
    from routed_rl.tracking.wandb_run import WandbRun

    tracker, code = guarded(WandbRun(run, config)), 1
    try:
        yield tracker
        code = 0
    except Halted:
        code = 3
        raise
    finally:
        tracker.finish(code)
