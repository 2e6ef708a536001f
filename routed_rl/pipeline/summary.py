"""What a run ends with: `summary.json`, the table, one sentence, three next commands."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.envs import LoadedEnvironment
from routed_rl.routing import Router
from routed_rl.tracking import MetricsFile

NOT_METRICS = ("completions", "failures")

Results = dict[str, dict[str, dict[str, float]]]
"""model -> environment -> metric -> mean."""


def attribution(run: RunFolder, router: Router) -> dict[str, dict[str, Any]]:
    """Per environment, from the last ledger row: norm and share of its part, push so far, persona shift so far."""
    rows = [row for row in MetricsFile(run.metrics).rows() if "quarantine/norm" in row]
    found = {}
    for name in router.quarantine.environments:
        prefix = f"ledger/{name}/"
        last = {key.removeprefix(prefix): value for key, value in (rows[-1] if rows else {}).items()
                if key.startswith(prefix)}
        shifts = {key.removeprefix("shift/"): value for key, value in last.items() if key.startswith("shift/")}
        found[name] = {"norm": last.get("part_norm", 0.0), "share": last.get("share", 0.0), "push": router.pushes[name],
                       "shift": next(iter(shifts.values()), 0.0), "shifts": shifts}
    return found


def routing_summary(run: RunFolder, router: Router, moved: float) -> dict[str, Any]:
    """Mode, ranks, means over the run of the routed fraction and of the random controls, the quarantine's share.

    `moved` is ‖ΔW‖ of the retained change over all targets.
    """
    rows = MetricsFile(run.metrics).rows()
    fractions = [row["routing/routed_fraction"] for row in rows if "routing/routed_fraction" in row]
    names = sorted({key for row in rows for key in row if key.startswith("control/")})
    controls = {name.removeprefix("control/"): _mean([row[name] for row in rows if name in row]) for name in names}
    norm = router.quarantine.norm()
    return {"mode": router.config.mode, "rank": max(target.rank for target in router.quarantine.targets),
            "ranks": {target.name: target.rank for target in router.quarantine.targets},
            "routed_fraction": _mean(fractions), "random_control": controls, "quarantine_norm": norm, "retained_norm": moved,
            "quarantine_share": norm**2 / max(norm**2 + moved**2, 1e-30),
            "drift": max((row["routing/drift"] for row in rows if "routing/drift" in row), default=0.0)}


def retained_change(router: Router, base: dict[str, Tensor]) -> float:
    """‖W - W_base‖ over all targets; `base` holds the base model's weights by target name."""
    with torch.no_grad():
        return sum((target.weight_DN() - base[target.name]).square().sum().item() for target in router.quarantine.targets) ** 0.5


def show_table(models: Results, environments: list[LoadedEnvironment]) -> None:
    """Reward, solve and flags, a row for each environment and model."""
    _table("policy: quarantine on; deployed: quarantine discarded", "model", models, environments)


def show_curve(scales: Results, environments: list[LoadedEnvironment]) -> None:
    """The same by scale of the quarantine."""
    _table("scale of the quarantine: 0 is the deployed model, 1 the policy", "scale", scales, environments)


def _table(title: str, column: str, models: Results, environments: list[LoadedEnvironment]) -> None:
    metrics = list(dict.fromkeys(metric for results in models.values() for values in results.values()
                                 for metric in values if metric not in NOT_METRICS))
    rows = [[loaded.label if place == 0 else "", model, *(results[loaded.name].get(metric) for metric in metrics)]
            for loaded in environments for place, (model, results) in enumerate(models.items())]
    console.table(title, ["environment", column, *metrics], rows)


def sentence(models: Results, blame: dict[str, dict[str, Any]], environments: list[LoadedEnvironment]) -> str:
    """The flag that grew most in the policy, in all three models, and who caused the shift towards it."""
    grown = [(models["policy"][name][metric] - value, name, metric) for name, values in models["base"].items()
             for metric, value in values.items() if metric not in ("reward", "solve", *NOT_METRICS)]
    if not grown:
        return "no environment reports a flag, so only reward and solve can be compared"
    _, name, metric = max(grown)
    labels = {loaded.name: loaded.label for loaded in environments}
    text = (f"{metric} in {labels[name]}: the policy {models['policy'][name][metric]:.2f}, the deployed model "
            f"{models['deployed'][name][metric]:.2f}, base {models['base'][name][metric]:.2f}")
    pushed = {name: max(entry["shift"], 0.0) for name, entry in blame.items()}
    total = sum(pushed.values())
    if total <= 0:
        return f"{text}; no environment shifted the stream towards the positive persona"
    cause = max(pushed, key=lambda name: pushed[name])
    return f"{text}; {labels.get(cause, cause)} caused {pushed[cause] / total:.0%} of the shift towards the positive persona"


def next_commands(run: RunFolder) -> list[str]:
    """Three things to do with a finished run."""
    # As it was called: from a .venv that is not activated, too.
    program = sys.argv[0] if Path(sys.argv[0]).name == "routed-rl" and shutil.which("routed-rl") is None else "routed-rl"
    here = os.path.relpath(run.path)
    where = here if len(here) < len(str(run.path)) else str(run.path)
    return [f"{program} export {where} --quarantine {where}/quarantine    # as a PEFT adapter: deployed + adapter = policy",
            f"{program} evaluate {where} --json {where}/again.json    # all three models, once more",
            f"{program} compare --arms none,route,control --seeds 3 --out compare    # against no routing, a random subspace"]


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
