"""The detector that a run learns before its first step. The base model writes completions, the environments' flags label a few of
them, and a linear probe on the base model's activations is fitted to the labelled ones and measured on the others."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.config import DetectorConfig
from routed_rl.envs import Score, Scorer, Task, has_episodes, mixture
from routed_rl.errors import ConfigError
from routed_rl.evaluate import generate_ids, own_randomness, seed_all, stable_seed
from routed_rl.extraction.pooled import Said, pooled
from routed_rl.extraction.probe import FEWEST, Probe, fit, measured
from routed_rl.model.prompts import encode_prompts
from routed_rl.model.stream import eval_mode
from routed_rl.model.targets import decoder_layers
from routed_rl.pipeline.build import Parts
from routed_rl.training.baselines import check_flags, is_marked

LEARNED = ("flags", "labels", "pool", "fpr", "layers")
"""Settings of the detector on which the linear probe depends. If they change, it is learned anew."""
POOL = "detector"
"""The name from which the seed of the completions to be labelled is derived, so that they are of other tasks than the
training."""


@dataclass(frozen=True)
class Written:
    """A completion that the base model wrote, and its score."""

    environment: str
    said: Said
    score: Score | None


def check_detector(parts: Parts) -> None:
    """Raise ConfigError if the settings ask for a linear probe that is not possible with this model or these environments."""
    settings = parts.config.baseline.detector
    if not parts.config.learns_detector:
        return
    check_layers(settings, len(decoder_layers(parts.model)), parts.config.model.path)
    if settings.labelled < 2 * FEWEST:
        raise ConfigError(f"baseline.detector.labels={settings.labels:g} of pool={settings.pool} labels {settings.labelled} "
                          f"completions, and a probe needs {FEWEST} with a flag and {FEWEST} without; raise it, such as to 200, "
                          "or to a share such as 0.05")
    if playing := [loaded.name for loaded in parts.trained if has_episodes(loaded.environment)]:
        raise ConfigError(f"environment {playing[0]} has episodes, whose completions baseline.detector.kind=probe cannot read; "
                          "set baseline.detector.kind=flags, or leave the environment out")


def check_layers(settings: DetectorConfig, layers: int, model: str, name: str = "baseline.detector.layers") -> None:
    """Raise ConfigError if the settings name a layer that the model does not have. `layers` is the number of its layers, and
    `model` its name for the message; `name` is the setting or option that gave the layers."""
    if settings.layers is not None and max(settings.layers) >= layers:
        raise ConfigError(f"{name} has {max(settings.layers)}, but {model} has {layers} layers, counted from "
                          f"0; choose from 0 to {layers - 1}")


def learn_detector(parts: Parts, run: RunFolder) -> None:
    """Write RUN/detector if the run's settings ask for a linear probe, unless a probe with the same settings is there already."""
    settings = parts.config.baseline.detector
    if not parts.config.learns_detector:
        return
    wanted = {key: value for key, value in asdict(settings).items() if key in LEARNED}
    if run.detector.exists() and Probe.load(run.detector)[1].get("settings") == wanted:
        return
    with console.progress("detector", "completions") as advance:
        rows = base_completions(parts, settings.pool, advance)
    check_flags(settings, [row.score for row in rows])
    probe, found = learned(parts, [row for row in rows if row.score is not None], settings)
    probe.save(run.detector, {"settings": wanted, "model": parts.config.model.path, "model_hash": parts.hash} | found)
    console.say(detector_sentence(probe, found))


def base_completions(parts: Parts, count: int, advance: console.Advance) -> list[Written]:
    """Let the base model write `count` completions of tasks from the run's mixture, one for each task. These tasks differ from
    those of the training, and the run's own random numbers do not change. Environments with episodes are left out; if all have
    episodes, the result is empty."""
    seed, size = stable_seed(parts.config.seed, POOL, 0) % 2**31, parts.config.evaluation.batch_size
    trained = parts.trained
    if any(has_episodes(loaded.environment) for loaded in trained):  # without them a schedule may have times without a weight
        trained = [replace(loaded, weights=((0, max(weight for _, weight in loaded.weights)),)) for loaded in trained
                   if not has_episodes(loaded.environment)]
    tasks = list(islice(mixture(trained, seed), count)) if trained else []
    scorer = Scorer({loaded.name: loaded for loaded in trained}, parts.config.evaluation.max_failures)
    temperature, rows = parts.config.trainer.get("temperature", 1.0), list[Written]()
    with eval_mode(parts.model), torch.no_grad(), own_randomness():
        seed_all(seed)
        for start in range(0, len(tasks), size):
            batch = tasks[start:start + size]
            ids = generate_ids(parts.model, parts.tokenizer, encode_prompts(parts.tokenizer, [task.prompt for _, task in batch]),
                               temperature, parts.max_new_tokens)
            texts = parts.tokenizer.batch_decode(ids, skip_special_tokens=True)
            wanted: dict[str, list[tuple[Task, str]]] = defaultdict(list)
            for (environment, task), text in zip(batch, texts, strict=True):
                wanted[trained[environment].name].append((task, text))
            found = {name: iter(scores) for name, scores in scorer.score_all(wanted).items()}
            scorer.check()
            rows += [Written(name := trained[environment].name, (task.prompt, text), next(found[name]))
                     for (environment, task), text in zip(batch, texts, strict=True)]
            advance(len(rows), count)
    return rows


def learned(parts: Parts, rows: Sequence[Written], settings: DetectorConfig) -> tuple[Probe, dict[str, Any]]:
    """Fit a linear probe to the first `settings.labelled` of `rows`, and measure it on the others, together and by environment.
    Returns the probe and a record of the measured figures. The model in `parts` must be the base model, and every row must have a
    score."""
    marked = torch.tensor([is_marked(settings, row.score) for row in rows])
    known, size = min(settings.labelled, len(rows)), parts.config.evaluation.batch_size
    few = pooled(parts.model, parts.tokenizer, [row.said for row in rows[:known]], size, layers=settings.layers)
    probe = fit(few, marked[:known], settings.layers, settings.fpr, parts.config.seed)
    rest = rows[known:]
    scores = probe.scores(pooled(parts.model, parts.tokenizer, [row.said for row in rest], size, layers=probe.layers))
    names = [row.environment for row in rest]
    return probe, {"labelled": known, "labelled_marked": int(marked[:known].sum()),
                   "held_out": measured(probe, scores, marked[known:]),
                   "environments": {name: measured(probe, scores[ours], marked[known:][ours]) for name in dict.fromkeys(names)
                                    if (ours := torch.tensor([each == name for each in names])).any()}}


def detector_sentence(probe: Probe, found: dict[str, Any]) -> str:
    """A line for the screen about the linear probe and its quality on completions that were not used to fit it. `found` is the
    record that `learned` returns."""
    held, layers = found["held_out"], " and ".join(map(str, probe.layers))
    numbers = ", ".join(f"{words} {'-' if held[key] is None else f'{held[key]:.3f}'}" for key, words in (
        ("auroc", "AUROC"), ("false_positive_rate", "false-positive rate"), ("recall", "recall")))
    return (f"detector      a probe on layer{'s' if len(probe.layers) > 1 else ''} {layers}, from {found['labelled']} labelled "
            f"completions, {found['labelled_marked']} of them marked; on {held['completions']} others: {numbers}; "
            f"threshold {probe.threshold:.2f}")
