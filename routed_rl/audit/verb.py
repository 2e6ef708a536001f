"""The verb `audit`: how much of the persona shift, and of the change of each environment's metrics, each group of modules carries
in the retained change of a run, and at which layers that change moved the stream.

It reads the run folder and the base model that the folder names. If the run trained LoRAs, a group holds the LoRAs of its
modules. All models that are measured see the same tasks and random numbers, but each figure has a sampling error: a rate near .5
over 200 samples has a standard error of .035.
"""

import dataclasses
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from routed_rl import checkpoint, console
from routed_rl.artifacts import RunFolder, check_file, write_json
from routed_rl.audit.change import Change, read_change
from routed_rl.audit.contributions import Measured, contributions, models_to_measure
from routed_rl.audit.groups import Groups, by_kind, by_layer, load, putting_back
from routed_rl.audit.probe import Coordinates, coordinates, shift_between
from routed_rl.config import LABELS, AuditConfig
from routed_rl.envs import LoadedEnvironment, task_stream
from routed_rl.errors import CheckpointError, ConfigError
from routed_rl.evaluate import evaluate
from routed_rl.model.prompts import encode_prompts
from routed_rl.pipeline.build import Parts, load_parts, make_router
from routed_rl.pipeline.record import inherited, read_config, require_base
from routed_rl.report.differences import not_scored
from routed_rl.subspace import Subspace
from routed_rl.tracking import NOT_METRICS

SHIFT = "shift"
"""Name of the measure that is the weighted mean over layers of the shift along the first axis."""
Measures = dict[str, float]


def audit(target: str, settings: AuditConfig, envs: list[str] | None, json_file: str | None,
          step: int | None = None) -> dict[str, Any]:
    """Measure the base model, the policy, the deployed model, and the models in which some groups have the base model's values,
    and show the tables. `target` is the run folder, `envs` names the environments to measure (None: all), and `step` chooses a
    checkpoint (None: the last). Returns the content that is written to `json_file`."""
    run = RunFolder.open(target)
    if json_file:
        check_file(Path(json_file), "--json")
    config, folder = read_config(run), run.require_checkpoint(step)
    if config.routing.mode == LABELS:
        raise ConfigError(f"{target} was routed by labels, so there is no split at a subspace to audit; `routed-rl evaluate` "
                          "compares base, policy and deployed model")
    parts = load_parts(config)
    require_base(run, config, parts.hash)
    meter = _Meter(parts, settings, _chosen(parts, envs), Subspace.load(run.subspace) if run.subspace.exists() else None)
    change = read_change(parts, folder)
    if not (names := change.names):
        raise CheckpointError(f"the deployed model of {target} is its base model ({folder.name}), so there is nothing to audit")
    partitions = {"kind": by_kind(parts.model, parts.writers, names),
                  "layer": by_layer(parts.model, names, settings.blocks)}
    sets = dict.fromkeys(one for groups in partitions.values() for one in models_to_measure(groups))
    measured, policy = _measure(meter, list(sets), change, lambda: _load_policy(parts, run, meter.subspace, change, folder))
    found = {"settings": dataclasses.asdict(settings) | {"seed": config.seed, "checkpoint": folder.name},
             "models": {"base": measured[frozenset(names)], "policy": policy, "deployed": measured[frozenset()]},
             "groups": {name: _described(groups, measured, change) for name, groups in partitions.items()},
             "probes": meter.probes}
    _show(found, meter.subspace)
    if json_file:
        write_json(Path(json_file), found)
    return found


def _chosen(parts: Parts, envs: list[str] | None) -> list[LoadedEnvironment]:
    known = [loaded.name for loaded in parts.environments]
    if missing := [name for name in envs or [] if name not in known]:
        raise ConfigError(f"--env {missing[0]} is not an environment of this run; it has {', '.join(known)}")
    return [loaded for loaded in parts.environments if envs is None or loaded.name in envs]


class _Meter:
    """Measures the model in its present state: every metric as `<env>.<metric>`, and the shift relative to the model that was
    measured first."""

    def __init__(self, parts: Parts, settings: AuditConfig, chosen: list[LoadedEnvironment], subspace: Subspace | None) -> None:
        self.parts, self.chosen, self.subspace = parts, chosen, subspace
        self.evaluation = dataclasses.replace(parts.config.evaluation, samples=settings.samples)
        prompts = [task.prompt for loaded in chosen
                   for task in islice(task_stream(loaded, "eval", parts.config.seed), settings.prompts)]
        self.sequences = list(dict.fromkeys(map(tuple, encode_prompts(parts.tokenizer, prompts))))
        self.reference: Coordinates | None = None
        self.probes: dict[str, Any] = {}

    def __call__(self, name: str | None = None) -> Measures:
        """The measures of the model. With a `name`, the shift at every layer is also stored in `probes` under this name."""
        results = evaluate(self.parts.model, self.parts.tokenizer, self.chosen, self.evaluation, seed=self.parts.config.seed,
                           max_new_tokens=self.parts.max_new_tokens)
        measures = {f"{env}.{metric}": value for env, values in results.items() for metric, value in values.items()
                    if metric not in NOT_METRICS}
        for line in not_scored({name or "a model in between": results}):
            console.say(line)
        if self.subspace is None:
            return measures
        settings = self.parts.config.subspace
        here = coordinates(self.parts.model, self.sequences, self.subspace, settings.positions, settings.batch_size,
                           self.subspace.provenance.hook)
        self.reference = self.reference or here
        shift = shift_between(self.reference, here, self.subspace.scales)
        if name is not None:
            self.probes[name] = {axis: {"normalised": shift.normalised[:, place].tolist(), "raw": shift.raw[:, place].tolist()}
                                 for place, axis in enumerate(self.subspace.axis_names)}
        weights = self.subspace.layer_weights().to(shift.normalised)
        return measures | {SHIFT: float(shift.normalised[:, 0] @ weights / weights.sum())}


def _measure(meter: _Meter, sets: list[frozenset[str]], change: Change, load_policy: Callable[[], None]
             ) -> tuple[Measured, Measures]:
    """For each set of parameters in `sets`, measure the deployed model with the base model's values in these parameters. Then
    call `load_policy`, and measure the policy. Returns the measures keyed by set, and the measures of the policy. The base model
    comes first, as the reference of shifts; the policy comes last, because its quarantine stays in the model."""
    whole = max(sets, key=len)
    names = {whole: "base", frozenset(): "deployed"}
    measured: Measured = {}
    with console.progress("audit", "models") as advance:
        for one in sorted(sets, key=lambda one: one != whole):
            with putting_back(meter.parts.model, one, change.base, change.deployed):
                measured[one] = meter(names.get(one))
            advance(len(measured), len(sets) + 1)
        load_policy()
        policy = meter("policy")
        advance(len(sets) + 1, len(sets) + 1)
    return measured, policy


def _load_policy(parts: Parts, run: RunFolder, subspace: Subspace | None, change: Change, folder: Path) -> None:
    load(parts.model, change.base)  # the router's reference must be that of the base model
    router = make_router(parts, subspace, inherited(run))
    load(parts.model, change.deployed)
    if router is not None:
        checkpoint.load_quarantine(folder, router)


def _described(groups: Groups, measured: Measured, change: Change) -> dict[str, Any]:
    """For each group, how many numbers were trained in it, its share of the energy of the whole change, and its `Contribution` to
    each measure."""
    energy = {group: sum(change.energies[name] for name in names) for group, names in groups.items()}
    found = contributions(groups, measured)
    return {group: {"parameters": sum(change.sizes[name] for name in names), "energy": energy[group] / sum(energy.values()),
                    "measures": {name: dataclasses.asdict(part) for name, part in found[group].items()}}
            for group, names in groups.items()}


def _show(found: dict[str, Any], subspace: Subspace | None) -> None:
    models = found["models"]
    columns = [name for name in models["deployed"] if name == SHIFT or name.split(".")[-1] not in ("reward", "solve")]
    for partition, groups in found["groups"].items():
        rows = [[group, row["energy"], *(f"{row['measures'][name]['carried']:+.3f} ({row['measures'][name]['alone']:+.3f})"
                                         for name in columns)] for group, row in groups.items()]
        totals = [sum(row["measures"][name]["carried"] for row in groups.values()) for name in columns]
        rows.append(["sum = deployed - base", 1.0, *(f"{total:+.3f}" for total in totals)])
        console.table(f"by {partition}: the part of the change that each group carries (alone: when only this group is put back)",
                      ["group", "energy", *columns], rows)
    rows = [[name, *(f"{values[column]:.3f}" for column in columns)] for name, values in models.items()]
    console.table("the models", ["model", *columns], rows)
    if subspace is not None:
        axis = subspace.axis_names[0]
        rows = [[layer, *(f"{found['probes'][model][axis]['normalised'][layer]:+.3f}" for model in ("deployed", "policy"))]
                for layer in range(len(subspace.axes))]
        console.table(f"the stream's shift along {axis} at prompts' ends, in units of the gap",
                      ["layer", "deployed", "policy"], rows)
