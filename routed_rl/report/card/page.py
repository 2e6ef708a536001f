"""Writes the model card, README.md, of a folder that users publish.

The same files give the same bytes. Users' text (names, metrics) is escaped, and no path of the machine is shown.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from routed_rl import console
from routed_rl.artifacts import CARD, RunFolder
from routed_rl.report.card.facts import DEPLOYED, POLICY, QUARANTINE, STUDENT, Facts, Leaving, hub_name, known, plain
from routed_rl.report.card.robust import making
from routed_rl.report.card.training import base_words, training, unknown
from routed_rl.report.card.use import holds, loading
from routed_rl.report.data import read_run
from routed_rl.report.differences import Results, cost, differences, keeping, not_scored
from routed_rl.tracking import MODELS, NOT_METRICS

TITLES = {DEPLOYED: "the deployed model", POLICY: "the policy", QUARANTINE: "the quarantine",
          STUDENT: "the robustified model"}
ABOUT = ("`routed_rl` fine-tunes language models by reinforcement learning and splits every change of the weights at a subspace "
         "of activations, here the directions of a persona that must not grow. What lies outside of the subspace goes into the "
         "model. What lies inside goes into a *quarantine*, a LoRA that can be discarded. The *policy* is the model with its "
         "quarantine, the *deployed model* is the model without it.")


def write_card(run: RunFolder, folder: Path, leaving: Leaving, results: Results | None = None) -> Path:
    """Write the model card of `folder`, which has all its other files already, and return the path of the card. `leaving` says
    which kind of model `folder` holds, and of which step. `results` are the figures at the end of the run, by model, environment
    and metric; None for those in the run's summary.json, if it has one."""
    data = read_run(run)
    if results is None:
        results = data.models if data.summary is not None else {}
    facts = Facts(data, leaving, folder, results)
    title = f"# {plain(data.config.get('name') or run.path.name)}: {TITLES[leaving.what]}"
    lines = ["---", _front(facts), "---", "", title, "",
             f"{_capital(TITLES[leaving.what])} of a run of `routed_rl` that began with {base_words(facts)}.", "", ABOUT, "",
             *_verdict(facts), *_figures(facts), *holds(facts), *loading(facts), *making(facts), *training(facts),
             *unknown(facts)]
    file = folder / CARD
    file.write_bytes("\n".join(lines).encode(errors="backslashreplace"))
    return file


def _front(facts: Facts) -> str:
    """The YAML that the hub reads. For the quarantine of a run that trained the weights, the YAML names no base model: the model
    to which that adapter belongs is a folder of the run and has no name on the hub."""
    environments: dict[str, Any] = facts.run.config.get("env") or {}
    rows = [str(each.get("dataset") or "") for each in environments.values() if isinstance(each, dict) and not each.get("probe")]
    base = facts.base if facts.trains_lora or facts.leaving.what != QUARANTINE else None
    relation: dict[str, Any] = {"base_model_relation": "adapter" if facts.is_adapter else "finetune"} if base else {}
    algorithm = str((facts.run.config.get("trainer") or {}).get("algorithm", "grpo"))
    data = ModelCardData(base_model=base, library_name="peft" if facts.is_adapter else "transformers",
                         pipeline_tag="text-generation", datasets=sorted({name for name in rows if hub_name(name)}) or None,
                         tags=["routed_rl", "trl", algorithm, "reinforcement-learning", facts.leaving.what], **relation)
    return data.to_yaml().rstrip()


def _verdict(facts: Facts) -> list[str]:
    """The lines of the card's section on the verdict: which environment filled the quarantine, what training changed, and what
    discarding costs."""
    run, labels = facts.run, facts.labels
    said = [f"The monitor halted the run at step {run.halted['step']}: {plain(run.halted['verdicts'][0]['sentence'])}."
            ] if run.halted else []
    if run.mode in ("none", "labels"):
        said.append(f"Nothing was attributed to an environment, since routing.mode={run.mode} does not measure it.")
    else:
        said.append(f"Who filled the quarantine: {run.blame.sentence(labels) or 'the run has not measured that'}.")
    if all(facts.results.get(model) for model in MODELS):
        kept = keeping(facts.results, facts.shares, labels, run.flags) if "kept" in facts.results else ""
        lines = (differences(facts.results, run.mode, labels, run.flags), cost(facts.results, run.mode, labels), kept)
        said += [f"{_capital(line)}." for line in (*lines, *not_scored(facts.results, labels)) if line]
    return ["## Verdict", "", *(f"- {line}" for line in said), ""]


def _figures(facts: Facts) -> list[str]:
    """The lines of the card's section on figures: a table of means with a row for each environment and metric and a column for
    each model, and with the numbers of completions."""
    if not known(facts.results):
        return []
    models, rows = list(facts.results), []
    environments = dict.fromkeys(env for found in facts.results.values() for env in found)
    for env in environments:
        means = {model: facts.results[model].get(env) or {} for model in models}
        for metric in dict.fromkeys(metric for each in means.values() for metric in each if metric not in NOT_METRICS):
            counts = " / ".join(dict.fromkeys(_cell(each.get("completions"), "g") for each in means.values()))
            rows.append([facts.labels.get(env, plain(env)), plain(metric),
                         *(_cell(means[model].get(metric), ".3f") for model in models), counts])
    own = facts.leaving.what == STUDENT or facts.run.last_step == facts.leaving.step
    note = "" if own else (
        f" They are of step {facts.run.last_step}, the end of the run, and this folder is of step {facts.leaving.step}.")
    heat = plain(facts.run.setting("evaluation", "temperature", 1.0))
    return ["## Figures", "",
            f"Means over completions at temperature {heat}, each of a task of its own that was not trained on.{note}", "",
            *console.markdown_table(["environment", "metric", *models, "completions"], rows), ""]


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _capital(line: str) -> str:
    return line[:1].upper() + line[1:]
