"""The table at the top of a run's page, and the choice of the environment that the page's pictures highlight."""

from routed_rl.report.data import RunData
from routed_rl.report.parts import Table


def final_shifts(run: RunData) -> dict[str, float]:
    """The shift of each environment's part so far, along the axis that the monitor judges."""
    axis = next(iter(run.axes()), None)
    found = {name: run.last(f"ledger/{name}/shift/{axis}") for name in run.environments()}
    return {name: value for name, value in found.items() if value is not None}


def culprit(run: RunData) -> str | None:
    """The environment that is highlighted. It is the environment of the halt if there was one; or else, of the environments that
    the evidence names, the one with the most evidence; or, in a run without evidence, the one with the largest shift above 0.
    None if there is no such environment."""
    if run.halted:
        return run.halted.get("environment")
    if run.blame.evidence:
        return next(iter(run.blame.named), None)
    shifts = final_shifts(run)
    worst = max(shifts, key=lambda name: shifts[name], default=None)
    return worst if worst is not None and shifts[worst] > 0 else None


def table(run: RunData) -> Table:
    """The table with a row for each environment: its effect on the quarantine, its rewards, the monitor's verdicts, and the
    effect of discarding."""
    columns = ["environment"]
    routed = bool(final_shifts(run))
    if routed:
        columns += ["push so far", "share of all push", "shift so far"]
    columns += ["paid, lately", "true, lately", "monitor"]
    metric = next((name for name in run.metrics() if name not in ("solve", "reward")), None) or next(iter(run.metrics()), None)
    models = list(run.models) if metric else []
    columns += [f"{metric}, {model}" for model in models]
    failed = {name: int(run.series(f"environment/{name}/failures").sum()) for name in run.environments()}
    columns += ["not scored"] if any(failed.values()) else []
    practice = {name: int(run.series(f"practice/{name}/completions").sum()) for name in run.environments()}
    columns += ["practised"] if any(practice.values()) else []
    pushes, removed = {name: float(run.series(f"ledger/{name}/push").sum()) for name in run.environments()}, run.removed()
    whole, shifts = sum(push for name, push in pushes.items() if name not in removed), final_shifts(run)
    said = verdict_words(run)
    probes = [name for results in run.models.values() for name in results if name not in pushes]
    rows = []
    for name in [*sorted(pushes, key=lambda name: (name in removed, -shifts.get(name, 0.0))), *dict.fromkeys(probes)]:
        share = pushes[name] / whole if whole and name in pushes and name not in removed else None
        routes = [pushes.get(name), share, shifts.get(name)] if routed else []
        monitor = said.get(name, "nothing" if name in pushes else "only evaluated")
        rows.append([name, *routes, run.recent(f"environment/{name}/reward"), run.recent(f"environment/{name}/solve"),
                     f"{monitor}; its part was removed" if name in removed else monitor,
                     *(run.models[model].get(name, {}).get(metric or "") for model in models),
                     *([failed.get(name)] if any(failed.values()) else []),
                     *([practice.get(name)] if any(practice.values()) else [])])
    return Table(f"By environment{', the largest shift first' if routed else ''}. Push: growth of the quarantine that it caused. "
                 "Shift: towards the positive persona, in units of the gap between the personas. Paid and true: mean reward and "
                 "true score over the last tenth of the steps. Monitor: the rules that passed their limits."
                 + (" Not scored: completions of the training that are in no mean." if any(failed.values()) else "")
                 + (" Practised: completions that the deployed model rolled out and learned from; they are in no other column."
                    if any(practice.values()) else ""),
                 columns, rows, marked=culprit(run))


def verdict_words(run: RunData) -> dict[str, str]:
    """For each environment on which a rule gave a verdict, a text with these rules, each with the step of its first verdict."""
    found: dict[str, dict[str, str]] = {}
    for verdict in run.verdicts:
        halts = " halted" if verdict["action"] == "halt" else ""
        words = f"{verdict['rule']}{halts} at step {verdict['step']}"
        found.setdefault(verdict["environment"], {}).setdefault(verdict["rule"] + halts, words)
    return {name: ", ".join(rules.values()) for name, rules in found.items()}
