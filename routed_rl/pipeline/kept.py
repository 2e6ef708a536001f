"""The shares of environments' parts that a user asks to keep in a deployed model, and the objections to keeping them. This module
only reads files; `keeping` chooses the shares that are `auto`."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routed_rl import console
from routed_rl.artifacts import RunFolder, read_object, step_of
from routed_rl.config import AUTO, Config
from routed_rl.errors import ConfigError
from routed_rl.export.publish import Finish
from routed_rl.export.stock import discard
from routed_rl.monitor import blame, shift
from routed_rl.pipeline.finishing import finishing
from routed_rl.pipeline.record import inherited, tell_kept, trained_settings
from routed_rl.report.card import DEPLOYED, Results
from routed_rl.tracking import MetricsFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Base = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]
Asked = dict[str, float | str]
"""For each environment, a share of its part, or `AUTO`."""
PARTLESS = {"none": "has no quarantine", "erase": "leaves the quarantine empty",
            "labels": "has one quarantine for all environments",
            "observe": "has parts that do not sum to the quarantine, so none is the whole of what its environment did"}
"""Modes of routing in which no part can be kept, with the reason."""


@dataclass
class Kept:
    """The decision about one environment's part: the share that was asked for, the share that was decided on, and the objection
    to keeping it."""

    asked: float | str
    share: float | None
    """The share that is kept; None until it is chosen."""
    shift: float | None
    """How far the whole part moves the stream along the axis that the monitor watches, in gaps; None if that is unknown. A share
    of the part moves the stream in proportion."""
    against: str = ""
    """The reason to keep nothing of the part; empty if there is none."""
    paid: dict[str, float] = field(default_factory=dict)
    """Mean paid reward for each share that was tried."""


def check(config: Config, asked: Asked, option: str, run: RunFolder | None = None) -> None:
    """Raise ConfigError if `asked` names an environment that has no part to keep. `option` is the option or setting that names
    the environment, for the message; `run` is the run, if it has begun."""
    trained = trained_settings(config)
    for name in asked:
        if (mode := config.routing.mode) in PARTLESS:
            raise ConfigError(f"{option}{name}: routing.mode={mode} {PARTLESS[mode]}; leave {option.strip(' .')} out")
        if name not in trained:
            raise ConfigError(f"{option}{name}: {name} {_why_partless(name, config, run)}; there is {', '.join(trained)}")


def _why_partless(name: str, config: Config, run: RunFolder | None) -> str:
    if run and name in inherited(run):
        return "is no longer trained, so its part is kept out as a whole"
    if name in config.env:
        return "is only evaluated (a probe, or weight 0), so it has no part"
    if run and any(f"ledger/{name}/push" in row for row in MetricsFile(run.metrics).rows()):
        return "is no longer trained, and its part was forgotten"
    return "is no environment of this run"


def decide(run: RunFolder, config: Config, checkpoint: Path, asked: Asked) -> dict[str, Kept]:
    """Decide the share of each part that `asked` names, in a checkpoint, and find the objection to keeping it. The share stays
    None if it is still to be chosen. There is an objection if the part moves the stream towards the positive persona along the
    axis that the monitor watches, or if it is unknown how the part moves it. A share that is `AUTO` also meets an objection if
    `causes` names the environment. An `AUTO` share with an objection becomes 0."""
    axis, step = config.monitor.axis, step_of(checkpoint)
    rows = [row for row in MetricsFile(run.metrics).rows() if row["step"] <= step and shift(row, axis)]
    moved, accused, kept = shift(rows[-1], axis) if rows else {}, causes(run, config), dict[str, Kept]()
    for name, share in asked.items():
        kept[name] = one = Kept(share, None if share == AUTO else float(share), moved.get(name))
        if one.shift is None:
            one.against = (f"metrics.jsonl has no ledger/{name}/shift/{axis or 'AXIS'} up to step {step}, so nothing says where "
                           "its part moves the stream")
        elif one.shift > 0:
            one.against = (f"at step {rows[-1]['step']} its part moves the stream towards the positive persona, as a whole by "
                           f"{one.shift:.3f} of the gap between the personas")
        elif share == AUTO:
            one.against = accused.get(name, "")
        if one.against and share == AUTO:
            one.share = 0.0
    return kept


def causes(run: RunFolder, config: Config) -> dict[str, str]:
    """Return a text for each environment that the run itself found or suspects to cause a shift towards the positive persona. It
    says how this was found: by a halt of the monitor, or by the evidence of the run's steps, whether the run has ended or not. If
    the run has no evidence, the environment with the largest shift in `summary.json` is named."""
    halts = [read_object(path, {"environment": str | None, "step": int}) or {}
             for path in (run.halted, *sorted((run.path / "halts").glob("step-*.json")))]
    found = {halt["environment"]: f"the monitor halted for it at step {halt.get('step')}" for halt in halts
             if halt.get("environment")}
    if (who := blame(MetricsFile(run.metrics).rows(), config.monitor, trained_settings(config) or None)).evidence:
        said = "by the evidence of its steps it pulled towards the positive persona, or that is undecided"
        return dict.fromkeys([*who.named, *who.suspected], said) | found
    summary = read_object(run.summary, {"attribution": dict[str, dict[str, Any]]}) or {}
    shifts = {name: entry.get("shift") or 0.0 for name, entry in summary.get("attribution", {}).items()}
    worst = max(shifts, key=lambda name: shifts[name], default="")
    return found | ({worst: "summary.json names it as the cause of the shift"} if shifts.get(worst, 0.0) > 0 else {})


def refuse(kept: dict[str, Kept]) -> None:
    """Raise ConfigError for the first share that is to be kept although there is an objection to it."""
    for name, one in kept.items():
        if one.against and one.share:
            raise ConfigError(f"--keep {name}={one.share:g}: {one.against}; leave it out, or keep it with --force")


def say(kept: dict[str, Kept]) -> None:
    """Print a line for each part, with its share and the objection to keeping it."""
    for name, one in kept.items():
        against = f", although {one.against}" if one.share else f": {one.against}"
        console.say(f"keep {name}={one.share or 0:g}{against if one.against else ''}")


def shares_of(kept: dict[str, Kept]) -> dict[str, float]:
    return {name: one.share or 0.0 for name, one in kept.items()}


def write_deployed(run: RunFolder, out: Path, step: int | None, kept: dict[str, Kept], base: Base | None = None,
                   dtype: str | None = None, results: Results | None = None) -> Path:
    """Write the deployed model with the parts that it keeps to `out`, and record these parts in `out` and in the run. `base` is
    the model into which a LoRA is merged, or None; `dtype` and `results` are as in `finishing`."""
    parts = {name: dataclasses.asdict(one) for name, one in kept.items()}
    finish = finishing(run, DEPLOYED, dtype, results)

    def write(folder: Path, finish: Finish) -> Path:
        if not parts:
            return discard(run, folder, step, finish)
        from routed_rl.export.models import discard_but

        return discard_but(run, folder, parts, step, finish)

    place = written(write, out, base, finish)
    tell_kept(run, place, shares_of(kept))
    return place


def written(write: Callable[[Path, Finish], Path], out: Path, base: Base | None, finish: Finish) -> Path:
    """Write a model or a LoRA to `out`, and return its folder. If `base` is None, this is what `write(out, finish)` writes. If
    `base` is given, `write` is called with a temporary folder, and the LoRA that it writes there is merged into `base` and
    written to `out`. `finish` is applied to `out` before it is sealed."""
    if base is None:
        return write(out, finish)
    from routed_rl.export.merging import merged

    return merged(write, out, *base, finish)
