"""Relearning attacks, which bring back a behaviour that was removed from a model: RL in the environment that pays for it, and
fine-tuning on completions that show it. Results are kept, so the same call continues where an earlier one stopped."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import ADAPTER_CONFIG, read_object, resolve, write_json
from routed_rl.artifacts.whole import sha256
from routed_rl.config import BaselineConfig, Config, ModelConfig
from routed_rl.config.robust import FINE_TUNING, RL, RelearnConfig
from routed_rl.errors import RunFolderError
from routed_rl.evaluate import evaluate
from routed_rl.multirun.job import Job, train_or_resume
from routed_rl.multirun.workers import refuse_failed, run_missing
from routed_rl.pipeline.build import load_parts
from routed_rl.tracking import MetricsFile
from routed_rl.training.fine_tune import fine_tune

NEVER = 10**6
"""Steps between two checkpoints of an attack. It is larger than any number of updates, so that only the last checkpoint is
written."""
READ = ("*.safetensors", "*.bin", "config.json", ADAPTER_CONFIG, "tokenizer*", "chat_template*")
"""Patterns of the files in a model's folder on which the results of an attack depend."""
Said = tuple[Any, str]


@dataclass(frozen=True)
class Attacked:
    """A model to attack, and the seed of the attacks on it. `name` is the name of the model in the results."""

    name: str
    seed: int
    config: Config
    """The experiment, with `model` set to the attacked model."""
    hacks: tuple[Said, ...] = ()
    """Prompts and completions on which the model is fine-tuned."""


def attack(models: Sequence[Attacked], asked: RelearnConfig, folder: Path, jobs: int, another: str = "--out"
           ) -> list[dict[str, Any]]:
    """Attack each of `models` at each learning rate in `asked`, `jobs` runs at a time. Returns one record for each attack,
    {model, seed, by, rate, curve}, where `curve` is the share of flagged completions after 0, 1, .. updates. Results are stored
    in `folder`. `another` is the option by which a user chooses another folder; error messages name it. RoutedRLError if an
    attack failed, or if the files of a model have changed since an earlier call attacked it by RL. Attacks by fine-tuning are
    repeated instead if the files of their model have changed."""
    hashes = _hashes(models)
    wanted = list(product(models, asked.rates))
    records: list[dict[str, Any]] = []
    if RL in asked.by:
        planned = {(model.name, model.seed, rate): rl_job(model, asked, rate, folder) for model, rate in wanted}
        _refuse_changed([*planned.values()], [hashes[_place(model)] for model, _ in wanted], folder / "models.json", another)
        failed = run_missing(list(planned.values()), train_or_resume, jobs, folder / "logs", "relearn", another)
        refuse_failed(failed, len(planned), folder / "logs")
        records += [{"model": name, "seed": seed, "by": RL, "rate": rate, "curve": rl_curve(job, asked)}
                    for (name, seed, rate), job in planned.items()]
    if FINE_TUNING in asked.by:
        with console.progress("fine-tune", "models") as advance:
            for done, (model, rate) in enumerate(wanted, 1):
                if not model.hacks:
                    continue
                curve = _fine_tuned(model, asked, rate, folder / FINE_TUNING / f"{_name(model, rate)}.json",
                                    hashes[_place(model)])
                records.append({"model": model.name, "seed": model.seed, "by": FINE_TUNING, "rate": rate, "curve": curve})
                advance(done, len(wanted), model.name)
    return records


def files_of(model: ModelConfig) -> dict[str, str]:
    """Return {path of a file: its SHA-256} for the files of a model and of the LoRA that is merged into it. A model that is given
    by its name on the hub has no such files."""
    found: dict[str, str] = {}
    for place in filter(None, (model.path, model.adapter.path)):
        path = Path(resolve(place.removeprefix("gguf:")))
        files = [path] if path.is_file() else sorted(file for pattern in READ for file in path.glob(pattern) if file.is_file())
        found |= {str(file): sha256(file) for file in files}
    return found


def _place(model: Attacked) -> tuple[str, str | None]:
    return model.config.model.path, model.config.model.adapter.path


def _hashes(models: Sequence[Attacked]) -> dict[tuple[str, str | None], dict[str, str]]:
    """Maps the paths of a model and of the LoRA that is merged into it (None without one) to the result of `files_of`. A model
    that is attacked under several seeds is read once."""
    return {place: files_of(model.config.model) for place, model in {_place(model): model for model in models}.items()}


def _refuse_changed(jobs: Sequence[Job], hashes: Sequence[dict[str, str]], file: Path, another: str) -> None:
    """RunFolderError if the files of a job's model have changed since an earlier call began the job. `hashes` has the present
    hashes of these files, one mapping for each job. `file` stores the hashes with which each job began."""
    known = read_object(file, {}) or {}
    for job, now in zip(jobs, hashes, strict=True):
        was = known.get(job.name, now) if job.folder.config.exists() else now
        if was != now:
            changed = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
            raise RunFolderError(f"{job.folder.path} attacked another model: {changed[0]} has changed since; give another "
                                 f"{another}")
        known[job.name] = now
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, known)


def attacked_config(config: Config, asked: RelearnConfig, rate: float, seed: int) -> Config:
    """The settings with which an attack trains the model of `config` at the learning rate `rate`: only the environment
    `asked.env`, without routing, monitor and evaluation."""
    own = {key: value for key, value in config.env[asked.env].items() if key not in ("probe", "weight")}
    trainer = config.trainer | {"learning_rate": rate, "max_steps": asked.steps + 1, "save_steps": NEVER}
    practice = dataclasses.replace(config.routing.practice, share=0)
    return dataclasses.replace(
        config, seed=seed, env={asked.env: own}, trainer=trainer, discard=False, keep={},
        routing=dataclasses.replace(config.routing, mode="none", practice=practice),
        baseline=BaselineConfig(detector=config.baseline.detector),
        monitor=dataclasses.replace(config.monitor.reporting().only_for([asked.env]), health=0),
        evaluation=dataclasses.replace(config.evaluation, samples=0, every=0, scales=[], contexts=[]),
        tracking=dataclasses.replace(config.tracking, completions=False))


def rl_job(model: Attacked, asked: RelearnConfig, rate: float, folder: Path) -> Job:
    """Plan the RL run that attacks a model at the learning rate `rate`. The run has `asked.steps` + 1 steps, because the
    completions of a step are generated before the update of that step."""
    name = _name(model, rate)
    config = attacked_config(model.config, asked, rate, model.seed)
    return Job(name, dataclasses.replace(config, name=name, out=str(folder / "runs" / name)), [], model.name, model.seed)


def counted(config: Config, asked: RelearnConfig) -> list[str]:
    """The names of the flags that an attack on the model of `config` counts."""
    return asked.flags or config.baseline.detector.flags


def rl_curve(job: Job, asked: RelearnConfig) -> list[float]:
    """Return, for each step of a finished run, the share of flagged completions in the environment of the attack. It is the
    largest of the shares of the counted flags, or 0 if the step reported none of them."""
    names = [f"environment/{asked.env}/{flag}" for flag in counted(job.config, asked)]
    return [max((row[name] for name in names if row.get(name) is not None), default=0.0)
            for row in MetricsFile(job.folder.metrics).rows()]


def _fine_tuned(model: Attacked, asked: RelearnConfig, rate: float, file: Path, hashes: dict[str, str]) -> list[float]:
    """Fine-tune until the share of flagged completions is at least `asked.level`. Returns the curve of that share after 0, 1, ..
    updates, and stores it in `file` with `hashes`, the SHA-256 of the model's files. If `file` already has a curve for the same
    settings and hashes, nothing is trained and that curve is returned."""
    config, flags = attacked_config(model.config, asked, rate, model.seed), counted(model.config, asked)
    key = {"hacks": [list(pair) for pair in model.hacks], "steps": asked.steps, "batch": asked.batch, "samples": asked.samples,
           "level": asked.level, "env": config.env, "trainer": config.trainer, "flags": flags,
           "model": dataclasses.asdict(config.model) | {"date": None}, "files": hashes}
    if (found := read_object(file, {"curve": list[float]})) is not None and found.get("key") == key:
        return found["curve"]
    parts, curve = load_parts(config), list[float]()
    evaluation = dataclasses.replace(config.evaluation, samples=asked.samples)

    def is_back(step: int) -> bool:
        means = evaluate(parts.model, parts.tokenizer, parts.environments, evaluation, seed=config.seed,
                         max_new_tokens=parts.max_new_tokens)[asked.env]
        curve.append(max((means[flag] for flag in flags if flag in means), default=0.0))
        return curve[-1] >= asked.level

    file.parent.mkdir(parents=True, exist_ok=True)
    if not is_back(0):
        fine_tune(parts.learner, parts.tokenizer, model.hacks, file.parent, rate=rate, batch=min(asked.batch, len(model.hacks)),
                  seed=config.seed, steps=asked.steps, after_step=is_back)
    write_json(file, {"key": key, "curve": curve})
    return curve


def _name(model: Attacked, rate: float) -> str:
    return f"{model.name}-seed{model.seed}-rate{rate:g}"
