"""Records a halted run in `HALTED.json` and on the screen, and ends the command with exit code 3. This module works with files
alone and loads no model."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import RunFolder, damage, step_of, write_json
from routed_rl.config import Config, MonitorConfig
from routed_rl.errors import Halted, command
from routed_rl.monitor import Verdict, blame, shift
from routed_rl.pipeline.record import fresh_from_step, trained_settings
from routed_rl.pipeline.summary import publish
from routed_rl.report.ranking import hardest
from routed_rl.tracking import MetricsFile, Tracker, practised

COMPLETIONS = 10


def halt(run: RunFolder, verdicts: list[Verdict], config: Config, tracker: Tracker) -> None:
    """Write `HALTED.json` and the report, inform the tracker, show the record, and raise `Halted`."""
    record = describe_halt(run, verdicts, config.monitor.axis, config.monitor, trained_settings(config))
    write_json(run.halted, record)
    tracker.halted(record)
    publish(run, tracker, config)
    columns = ("environment", "push", "push_since", "shift", "shift_since")
    rules = {verdict.environment: verdict.rule for verdict in reversed(verdicts)}
    console.table("push: growth of the quarantine; shift: towards the positive persona; since: from step "
                  f"{record['since']} on; first those that the monitor halted for, then the largest push",
                  [*columns, "halted by"], [[*(row[column] for column in columns), rules.get(row["environment"], "")]
                                            for row in record["environments"]])
    for line in ["next:", *(f"  {each}" for each in record["commands"])]:
        console.say(line)
    raise Halted(f"halted by the monitor at step {record['step']}: {record['verdicts'][0]['sentence']}; "
                 f"{run.halted} says what to do next", str(run.path))


def describe_halt(run: RunFolder, verdicts: list[Verdict], axis: str | None, monitor: MonitorConfig | None = None,
                  trained: Collection[str] | None = None) -> dict[str, Any]:
    """The record of a halt: its verdicts, the environment and the step to which they point, push and shift of every environment,
    the last checkpoint before that step, the completions that did most to bring the halt about, and commands by which the user
    can go on. `axis` is the axis that the monitor watches, `monitor` has its settings (None: the defaults), and `trained` names
    the environments that are trained on (None: all)."""
    worst = max(verdicts, key=lambda verdict: verdict.value / max(abs(verdict.limit), 1e-12))
    step, since = worst.step, min(verdict.since for verdict in verdicts)
    rows = [row for row in MetricsFile(run.metrics).rows() if row["step"] <= step]
    who, halted = blame(rows, monitor or MonitorConfig(), trained), {verdict.environment for verdict in verdicts}
    # A rule may halt for several environments, or for the whole run. Then the environment that pulled is the one to look at.
    name = next((each for each in who.named if each in halted or halted == {""}), worst.environment)
    before, (found, by) = checkpoint_before(run, since), completions(run, rows, name, since, step)
    return {"step": step, "environment": name or None, "since": since,
            "verdicts": [verdict.record() for verdict in sorted(verdicts, key=lambda verdict: verdict is not worst)],
            "environments": ranked(rows, since, axis, [name, *(verdict.environment for verdict in verdicts)]),
            "checkpoint_before": before, "practised": practised(rows), "who": who.record(),
            "completions_by": by, "completions": found, "commands": commands(run, name, before)}


def ranked(rows: list[dict[str, Any]], since: int, axis: str | None, named: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every environment of the ledger with its push and its shift, over the whole run and from step `since` on. `rows` are the
    run's metrics, and `axis` is the axis of the shift. The environments in `named` come first, then those with the largest push
    from `since` on."""
    first = {name: place for place, name in enumerate(dict.fromkeys(named))}
    now = shift(rows[-1], axis)
    at = next((row for row in reversed(rows) if row["step"] < since), {})
    earlier, found = shift(at, axis), list[dict[str, Any]]()
    for name, value in now.items():
        pushes = [(row["step"], row.get(f"ledger/{name}/push") or 0.0) for row in rows]
        found.append({"environment": name, "push": sum(push for _, push in pushes),
                      "push_since": sum(push for step, push in pushes if step >= since),
                      "shift": value, "shift_since": value - earlier.get(name, 0.0)})
    return sorted(found, key=lambda row: (first.get(row["environment"], len(first)), -row["push_since"]))


def checkpoint_before(run: RunFolder, since: int) -> int:
    """The step of the last complete checkpoint before step `since`; 0, which stands for the base model, if there is none."""
    return max((step for step in run.steps() if step < since and damage(run.checkpoint(step)) is None), default=0)


def completions(run: RunFolder, rows: list[dict[str, Any]], name: str, since: int, step: int) -> tuple[list[dict[str, Any]], str]:
    """The completions of the steps `since` to `step` that did most to bring the halt about, and the measure by which they were
    ranked, see `hardest`. `rows` are the run's metrics. Only completions of the environment `name` count; if `name` is empty, all
    count."""
    files = [path for path in run.completion_files() if since <= step_of(path) <= step]
    return hardest(files, [row for row in rows if since <= row["step"] <= step], COMPLETIONS, name)


def commands(run: RunFolder, name: str, before: int) -> list[str]:
    """The commands with which a user can continue the run, from the checkpoint of step `before` or as it is. `name` is the
    environment to drop or to repair; empty if there is none."""
    back = ("rollback", run.path, "--step", before)
    ways = [f"{command(*back, '--drop', name)}    # without {name}",
            f"{command(*back, f'env.{name}.KEY=VALUE')}    # with {name} repaired"]
    again = f"{command(*back, 'KEY=VALUE')}    # with a setting changed; without a change it would halt again"
    return [*(ways if name else [again]),
            f"{command('resume', run.path)}    # go on as it is: it halts again on new evidence"]


def put_aside(run: RunFolder, step: int) -> None:
    """Move the record of a halt to `halts/step-N.json`, because the user has resumed the run. The records of halts after `step`,
    from which the run goes on, are removed, because the monitor judges those steps anew."""
    if halt := run.halt():
        (run.path / "halts").mkdir(exist_ok=True)
        run.halted.replace(run.path / "halts" / f"step-{halt['step']}.json")
    for path in Path(run.path, "halts").glob("step-*.json"):
        if step_of(path) > step:
            path.unlink()


def halted_steps(run: RunFolder) -> set[int]:
    """The steps at which the run halted and was resumed, and the step after which it continues with other environments, if a
    rollback made it (otherwise 0)."""
    steps = {step_of(path) for path in Path(run.path, "halts").glob("step-*.json")}
    return steps | {fresh_from_step(run)}
