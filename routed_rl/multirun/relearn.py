"""The verb `relearn` measures how many updates of training bring back a discarded behaviour, for the models of a run and for
others."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from routed_rl.artifacts import RunFolder, alone_in, check_file, resolve, write_json
from routed_rl.config import Config
from routed_rl.config.robust import FINE_TUNING, RelearnConfig
from routed_rl.errors import ConfigError, command
from routed_rl.multirun import reporter
from routed_rl.multirun.arms import UNROUTED
from routed_rl.multirun.attacks import Attacked, attack, counted
from routed_rl.multirun.hacks import first_hacks, hacks_of, read_hacks
from routed_rl.multirun.job import Job, say_reporting
from routed_rl.multirun.relearned import draw, summarised, table
from routed_rl.pipeline.adapters import is_adapter, with_adapter
from routed_rl.pipeline.older import refuse_older
from routed_rl.pipeline.record import read_config

BESIDE = RUNS, PICTURE = ".runs", ".png"
"""Endings of the names of the folder and the picture that are written beside the file of `--json`."""


def relearn(target: str, asked: RelearnConfig, json_file: str, others: Mapping[str, str], config: Config | None,
            jobs: int = 2) -> dict[str, Any]:
    """Attack the base model and the deployed model of the run `target`, or, if `target` is a model's folder, that model in the
    experiment `config`. `others` maps names to further runs or folders to attack; `jobs` runs train at the same time. Returns the
    content of `json_file`; the runs and a picture are written beside that file."""
    run, file = None if config is not None else RunFolder.open(target), Path(json_file).absolute()
    check_file(file, "--json")
    if file.suffix in BESIDE:
        raise ConfigError(f"--json {json_file} ends in {file.suffix}, as what is written beside it does; give a name in .json")
    config = config or read_config(RunFolder.open(target))
    check_environment(config, asked)
    asked = dataclasses.replace(asked, flags=counted(config, asked))
    models = {} if run is None else {"base": config}
    models |= {"model" if run is None else "deployed": with_model(config, target)}
    if twice := [name for name in others if name in models]:
        raise ConfigError(f"--also {twice[0]}={others[twice[0]]}: a model of {target} has this name already; give another one")
    models |= {name: with_model(config, place) for name, place in others.items()}
    if run is None:
        say_reporting(config, "an attack")
    folder, draw_hacks = file.with_suffix(RUNS), FINE_TUNING in asked.by
    if draw_hacks and run is None and asked.hacks is None:
        raise ConfigError(f"{target} is no run, so it has no completions to fine-tune on; give --hacks FILE, or --by rl")
    hacks = {seed: hacks_of(run, config, asked, seed) if draw_hacks else () for seed in range(asked.seeds)}
    attacked = [Attacked(name, config.seed + seed, each, hacks[seed]) for seed in range(asked.seeds)
                for name, each in models.items()]
    with alone_in(folder):
        records = attack(attacked, asked, folder, jobs, "--json")
    found = summarised(records, asked)
    write_json(file, {"settings": dataclasses.asdict(asked), "of": str(Path(target).absolute()), "models": found,
                      "attacks": records})
    draw(file.with_suffix(PICTURE), found, asked)
    notes = [] if asked.seeds > 2 else [f"--seeds {asked.seeds}: take 3 for an interval"]
    if not any(max(record["curve"]) for record in records):
        notes.append(f"no completion was flagged as {' or '.join(asked.flags)}; if {asked.env} has other flags, give --flag NAME")
    reporter.show([table(found, asked)], notes, file.parent, [file.name, file.with_suffix(PICTURE).name])
    return found


def check_environment(config: Config, asked: RelearnConfig, option: str = "--env") -> None:
    """Raise ConfigError if the experiment does not have the environment that the user gave by `option`."""
    if asked.env not in config.env:
        raise ConfigError(f"{option} {asked.env} is not configured; there is {', '.join(config.env) or 'none'}")


def check_arms(config: Config, asked: RelearnConfig) -> None:
    """Raise ConfigError if a comparison of this experiment would have no deployed model to attack, or if the completions on which
    the models are to be fine-tuned cannot be read."""
    check_environment(config, asked, "--relearn")
    if asked.hacks is not None:
        read_hacks(asked.hacks)
    if not config.discard:
        raise ConfigError("--relearn attacks the deployed model of each run, and with discard=false no run writes one; leave "
                          "discard=false out")


def with_model(config: Config, place: str) -> Config:
    """The experiment with another model. `place` is the folder of a model, or a run folder, which stands for the deployed model
    of the run. A LoRA is put on the experiment's own model, see `with_adapter`. ConfigError if there is no such model, or if the
    LoRA cannot be put on that model; RunFolderError if the deployed model of a run is of an earlier step than its newest
    checkpoint."""
    folder = Path(resolve(place))
    if (folder / "config.yaml").exists():
        run, folder = folder, RunFolder(folder).deployed
        if not folder.is_dir():
            raise ConfigError(f"{run} has no deployed model; write it with `{command('discard', run, '--out', folder)}`")
        refuse_older(RunFolder(run))
    elif not folder.is_dir():
        raise ConfigError(f"{place} is neither a run nor a model's folder; give one of them")
    if is_adapter(folder):
        return with_adapter(config, folder)
    model = config.model
    return dataclasses.replace(config, model=dataclasses.replace(model, path=str(folder), adapter=dataclasses.replace(
        model.adapter, path=None)))


def relearn_arms(config: Config, runs: Sequence[Job], asked: RelearnConfig, folder: Path, jobs: int) -> dict[str, Any]:
    """Attack the base model of the experiment `config`, and the deployed model of each of its `runs`, under the seed of the run.
    Returns the settings, a summary by model, and the record of each attack. All models of a seed are fine-tuned on the same
    completions: those of the unrouted run, or, if it has none, of another run. If no run has any, no model is fine-tuned."""
    attacked, asked = list[Attacked](), dataclasses.replace(asked, flags=counted(config, asked))
    for seed in dict.fromkeys(run.seed for run in runs):
        ours = [run for run in runs if run.seed == seed]
        hacks = first_hacks(sorted(ours, key=lambda run: run.arm != UNROUTED), config, asked, seed)
        models = {"base": config} | {run.arm: with_model(config, str(run.folder.path)) for run in ours}
        attacked += [Attacked(name, ours[0].config.seed, each, hacks) for name, each in models.items()]
    records = attack(attacked, asked, folder, jobs)
    found = summarised(records, asked)
    draw(folder / "relearn.png", found, asked)
    return {"settings": dataclasses.asdict(asked), "models": found, "attacks": records}
