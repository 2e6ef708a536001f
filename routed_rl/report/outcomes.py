"""Sections of a report on the outcome of a run: its models, reward and true score, completions, verdicts."""

from typing import Any

import pandas as pd

from routed_rl.report.charts import dots
from routed_rl.report.completions import shown
from routed_rl.report.data import RunData
from routed_rl.report.headline import is_flag
from routed_rl.report.over_time import panel_chart
from routed_rl.report.parts import Chart, Section, Table
from routed_rl.report.story import culprit

PANELS = 3
"""Largest number of metrics in the picture of the models."""
FLAGS = 2
"""Largest number of flags that are shown beside the paid reward and the true score."""


def models(run: RunData) -> Section:
    """The section on base model, policy and deployed model, as they were evaluated at the end of the run and during training."""
    section = Section("models", "What discarding does",
                      "The policy is the model as it was trained, quarantine on; the deployed model is what is left when the "
                      "quarantine is discarded; the base model is what it was before training."
                      + (" Kept is the deployed model with the parts that were kept." if "kept" in run.models else ""),
                      "No model of this run has been evaluated.")
    metrics = run.metrics()
    if found := {metric: per for metric in metrics[:PANELS] if (per := _by_model(run, metric))}:
        words = " ".join(_largest_change(metric, per) for metric, per in found.items() if {"base", "policy"} <= per.keys())
        section.charts.append(Chart("model-chart", "Base model, policy and deployed model by environment", words,
                                    dots("model-chart", found), _model_table(run, metrics)))
    for metric in metrics:
        if grid := {env: lines for env in _evaluated(run) if (lines := _over_steps(run, env, metric))}:
            name = "during-" + "".join(letter if letter.isalnum() else "-" for letter in metric)
            section.charts.append(panel_chart(run, name, f"{metric} during training", grid))
    return section


def pay(run: RunData) -> Section:
    """The section on the paid reward and the true score."""
    section = Section("pay", "What was paid, and what was true", "Where what is paid stays above what is true, the environment "
                      "pays for something else.", "No step is written yet.")
    kinds = dict.fromkeys(name.split("/")[2] for name in run.names if name.startswith("environment/"))
    flags = [kind for kind in kinds if kind not in ("failures", "restarts")
             and any(is_flag(env, kind, run.flags) for env in run.environments())][:FLAGS]
    names = {"reward": "paid", "solve": "true", **{flag: flag for flag in flags}}
    grid = {env: {word: series for kind, word in names.items() if len(series := run.series(f"environment/{env}/{kind}"))}
            for env in run.environments()}
    if grid := {env: lines for env, lines in grid.items() if lines}:
        section.charts.append(panel_chart(run, "pay-chart", "Paid reward, true score and flags by environment", grid))
    return section


def completions(run: RunData) -> Section:
    """The section with the completions that show best what was paid for, as `completions.shown` chooses them."""
    by, found = shown(run)
    kept = any((run.path / "completions").glob("step-*.parquet"))
    lead = f"Ranked by {by}; those that say the same are shown once." if found else ""
    return Section("completions", "Completions that show what was paid for", lead,
                   "No completion is known to have pushed towards the positive persona, or was paid above its true score." if kept
                   else "This run kept no completions (tracking.completions).", completions=found)


def verdicts(run: RunData) -> Section:
    """The section on the monitor's verdicts, with a row for each rule and environment."""
    section = Section("verdicts", "What the monitor said", "A rule that holds on is one row.", "No rule passed its limit.")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for verdict in run.verdicts:
        found.setdefault((verdict["rule"], verdict["environment"]), []).append(verdict)
    rows = [[each[0]["sentence"], each[0]["action"], each[0]["since"], each[0]["step"], each[-1]["step"], len(each),
             max(verdict["value"] for verdict in each), each[0]["limit"]] for each in found.values()]
    if rows:
        columns = ["verdict", "action", "since step", "first given at", "last at", "times", "largest value", "limit"]
        section.tables.append(Table("Verdicts, in the order in which they were first given.", columns, rows))
    return section


def _by_model(run: RunData, metric: str) -> dict[str, dict[str, float]]:
    found = {model: {env: means[metric] for env, means in results.items() if means.get(metric) is not None}
             for model, results in run.models.items()}
    return {model: values for model, values in found.items() if values}


def _largest_change(metric: str, per: dict[str, dict[str, float]]) -> str:
    """A sentence on the environment in which `metric` differs most between policy and base model; "" if no environment has it for
    both. `per` maps a model to {environment: value}."""
    changes = {env: abs(value - per["base"][env]) for env, value in per["policy"].items() if env in per["base"]}
    if not changes:
        return ""
    env = max(changes, key=lambda name: changes[name])
    values = ", ".join(f"{model} {values[env]:.2f}" for model, values in per.items() if env in values)
    return f"{metric} changed most in {env}: {values}."


def _model_table(run: RunData, metrics: list[str]) -> Table:
    failed = any(means.get("failures") for results in run.models.values() for means in results.values())
    metrics = [*metrics, *(["failures"] if failed else [])]
    columns = [(metric, model) for metric in metrics for model in run.models]
    rows = [[env, *(run.models[model].get(env, {}).get(metric) for metric, model in columns)] for env in _evaluated(run)]
    titles = [f"{'not scored' if metric == 'failures' else metric}, {model}" for metric, model in columns]
    return Table("Means by environment and model.", ["environment", *titles], rows, marked=culprit(run))


def _evaluated(run: RunData) -> list[str]:
    during = [name.split("/")[2] for name in run.names if name.startswith("evaluation/")]
    return list(dict.fromkeys([*(env for results in run.models.values() for env in results), *during]))


def _over_steps(run: RunData, env: str, metric: str) -> dict[str, pd.Series]:
    """A metric of the policy and of the deployed model at the steps at which they were evaluated in training, and the base
    model's value as a constant line."""
    lines = {model: run.series(f"evaluation/{model}/{env}/{metric}") for model in ("policy", "deployed")}
    lines = {model: series for model, series in lines.items() if len(series)}
    base = run.models.get("base", {}).get(env, {}).get(metric)
    if lines and base is not None:
        lines["base"] = pd.Series(base, index=[0, run.last_step])
    return lines
