"""Makes a student from a run and a teacher, in this order: texts, decisions of the gate, noise, steps, evaluation. Results that
take long to make are kept in the work folder."""

import json
import time
from collections import Counter
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from routed_rl import console
from routed_rl.artifacts import RunFolder, read_json, replacing
from routed_rl.config import Config
from routed_rl.config.robust import DETECTOR, MODELS, RANDOM, RobustifyConfig
from routed_rl.distillation import gates
from routed_rl.distillation.divergence import SKIP, Row
from routed_rl.distillation.loop import Distillation, Texts
from routed_rl.distillation.models import Student, load_deployed, load_student, on_device
from routed_rl.distillation.noise import add_noise
from routed_rl.distillation.texts import chosen, completions, read_texts
from routed_rl.envs import LoadedEnvironment, load_environments
from routed_rl.errors import ConfigError
from routed_rl.evaluate import evaluate
from routed_rl.extraction.probe import Probe
from routed_rl.model.adapter import plain
from routed_rl.model.load import load_model
from routed_rl.model.weights import model_hash
from routed_rl.pipeline.build import Parts, load_base
from routed_rl.pipeline.candidates import candidates
from routed_rl.pipeline.judges import probe_of
from routed_rl.pipeline.record import require_base
from routed_rl.pipeline.summary import Results

TRIAL = 64
"""Number of completions that are written to estimate the time."""


@dataclass(frozen=True)
class Given:
    """Everything that a student is made from. It has been read and checked, and nothing has been written yet."""

    run: RunFolder
    config: Config
    asked: RobustifyConfig
    parts: Parts
    """The run's base model, tokenizer and environments."""
    chosen: list[LoadedEnvironment]
    """The environments whose prompts the teacher answers."""
    generic: list[Row]
    teacher: Path
    probe: Probe | None
    """The linear probe of the gate `detector`; None for another gate."""
    unlearned: PreTrainedModel
    """The model that the gate `models` compares the teacher with; the base model unless the user names another one."""


@dataclass(frozen=True)
class Made:
    """A student after training, and the results about it."""

    student: Student
    record: dict[str, Any]
    evaluation: Results
    """The evaluation of the teacher, as `deployed`, and of the student, as `robustified`."""


def check(run: RunFolder, config: Config, asked: RobustifyConfig, envs: list[str] | None, teacher: Path) -> Given:
    """Read and check everything that a student is made from, so that a refused command writes nothing. `envs` names the
    environments whose prompts the teacher answers (None: all)."""
    environments = load_environments(config.mixture)
    ours = chosen(environments, envs)
    base, tokenizer = load_base(config)
    require_base(run, config, digest := model_hash(base))
    longest = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    generic = read_texts(asked.text, tokenizer, longest) if asked.text else []
    parts = Parts(config, on_device(config, base), tokenizer, environments, digest)
    probe, unlearned = None, parts.model
    if asked.gate == DETECTOR:
        probe = probe_of(candidates(run, config), parts, run, {"labels": asked.labels, "fpr": asked.fpr})
        asked.check_bands(probe.threshold)
    if asked.unlearned:
        unlearned = on_device(config, load_model(asked.unlearned, config.model.dtype, frozen=True))
    return Given(run, config, asked, parts, ours, generic, teacher, probe, unlearned)


def make(given: Given, work: Path) -> Made:
    """Train and evaluate the student. Texts and training states are kept in the folder `work`, from which a repeated call goes
    on."""
    asked, config, parts = given.asked, given.config, given.parts
    teacher, begun = load_deployed(config, given.teacher), time.perf_counter()
    rows = _texts(given, plain(teacher), work)
    gated, written = _gated(given, rows, plain(teacher)), time.perf_counter()
    student = load_student(config, given.teacher, asked.parts)
    add_noise(student.trained, asked.alpha, asked.beta, config.seed)
    distillation = Distillation(teacher, student.wrapped, student.trained, Texts(rows, gated.actions), asked, config.seed,
                                parts.model.config.get_text_config().vocab_size, work)
    curve = distillation.run()
    learned = time.perf_counter()
    models = {"deployed": plain(teacher), "robustified": student.model}
    evaluation = {name: evaluate(model, parts.tokenizer, parts.environments, config.evaluation, seed=config.seed,
                                 max_new_tokens=parts.max_new_tokens) for name, model in models.items()}
    counts = Counter(row.environment or "text" for row in rows)
    ended = "steps" if distillation.step >= asked.steps else "within"
    record = {"texts": dict(counts), "steps": distillation.step, "ended_by": ended, "curve": curve,
              "seconds": {"texts": written - begun, "steps": learned - written}}
    return Made(student, record | ({"gate": gated.record} if gated.record else {}), evaluation)


def _texts(given: Given, teacher: PreTrainedModel, work: Path) -> list[Row]:
    """Return the teacher's completions and the generic texts. If an earlier call has stored them in `work`, they are read from
    there. Otherwise the estimated time of the whole command is printed before the teacher writes."""
    file, tokenizer = work / "texts.json", given.parts.tokenizer
    if file.exists():
        return [Row(*each) for each in read_json(file)]
    _say_time(given, teacher, work)
    with console.progress("teacher", "completions") as advance:
        rows = completions(teacher, tokenizer, given.chosen, given.config, given.asked.samples, advance)
    rows += given.generic
    with replacing(file) as partial:
        partial.write_text(json.dumps([astuple(row) for row in rows]), encoding="utf-8")
    return rows


def _say_time(given: Given, teacher: PreTrainedModel, work: Path) -> None:
    asked, config = given.asked, given.config
    each = max(TRIAL // len(given.chosen), 1)
    begin = time.perf_counter()
    rows = completions(teacher, given.parts.tokenizer, given.chosen, config, each) + given.generic[:TRIAL]
    writing = (time.perf_counter() - begin) / each * asked.samples
    student = load_student(config, given.teacher, asked.parts)
    trial = Distillation(teacher, student.wrapped, student.trained, Texts(rows, gates.keep_all(rows).actions), asked, config.seed,
                         given.parts.model.config.get_text_config().vocab_size, work)
    names, steps = ", ".join(loaded.name for loaded in given.chosen), trial.seconds() * asked.steps
    console.say(f"robustify     {asked.samples} completions in each of {names}, {writing:.0f} s; then at most {asked.steps} "
                f"steps of {asked.batch} texts, about {steps:.0f} s; then two evaluations")


def _gated(given: Given, rows: list[Row], teacher: PreTrainedModel) -> gates.Gated:
    if given.probe is not None:
        gated = gates.by_detector(rows, given.parts, given.probe, given.asked)
    elif given.asked.gate == MODELS:
        gated = gates.by_models(rows, teacher, given.unlearned, given.asked)
    elif given.asked.gate == RANDOM:
        gated = gates.by_random(rows, given.asked, given.config.seed)
    else:
        return gates.keep_all(rows)
    if not any(action != SKIP for actions in gated.actions for action in actions):
        raise ConfigError(f"--gate {given.asked.gate} skips every token: all scores are above "
                          f"{gated.record['thresholds']['skip']:g}, so the student would learn nothing; give --skip a higher "
                          "score, or another gate")
    shares = [[name, *each.values()] for name, each in gated.record["tokens"].items()]
    console.table(f"gate {given.asked.gate}: shares of tokens that are kept, skipped or get noise",
                  ["", "kept", "skipped", "noise"], shares)
    return gated
