"""Sections of a report on the run itself: commands to continue with, settings, versions, lineage."""

import yaml

from routed_rl.config.references import without_secrets
from routed_rl.errors import command
from routed_rl.report.data import RunData
from routed_rl.report.parts import Section, Table


def commands(run: RunData) -> Section:
    """The section with the commands that repeat the run, continue it, and begin a new run at one of its checkpoints."""
    section = Section("commands", "Repeat the run, go on with it, go back in it")
    section.commands.append(f"{command(*_again(run))}    # the same once more, in a new folder")
    if run.halted:
        section.commands.extend(run.halted["commands"])
    elif run.summary is None:
        section.commands.append(f"{command('resume', run.path)}    # go on")
    elif not run.setting("evaluation", "samples", 1):
        section.commands.append(f"{command('resume', run.path, 'evaluation.samples=200')}    # evaluate its models")
    else:
        again = command("evaluate", run.path, "--json", f"{run.path}/again.json")
        section.commands.append(f"{again}    # all three models, once more")
    if run.checkpoints and not run.halted:
        back = command("rollback", run.path, "--step", run.checkpoints[0], "env.NAME.KEY=VALUE")
        section.commands.append(f"{back}    # from there, with an environment changed")
    section.commands.append(f"{command('report', run.path)}    # this page, from the files as they are then")
    return section


def settings(run: RunData) -> Section:
    """The section with all settings of the run, its lineage, and the versions with which it ran."""
    section = Section("settings", "Settings and versions")
    facts = {"folder": str(run.path), "begun": run.manifest.get("created"), "mode of routing": run.mode,
             "hash of the base model": run.manifest.get("model_hash"),
             "checkpoints": ", ".join(map(str, run.checkpoints)) or "none"}
    if line := run.lineage:
        facts |= {"went back from": f"{line['parent']}, step {line['step']}",
                  "dropped there": ", ".join(line["drop"]) or "nothing",
                  "changed there": " ".join(line["overrides"]) or "nothing"}
    if children := [f"{child['run']}, from step {child['step']}" for child in run.manifest.get("children", [])]:
        facts["went back to from here"] = "; ".join(children)
    section.tables.append(Table("The run.", ["fact", "value"], [list(pair) for pair in facts.items()]))
    if versions := run.manifest.get("versions"):
        section.tables.append(Table("Versions.", ["package", "version"], [list(pair) for pair in versions.items()]))
    section.texts.append(("Every setting", yaml.safe_dump(without_secrets(run.config), sort_keys=False)))
    return section


def _again(run: RunData) -> list[str]:
    """The arguments of the command that makes this run again: those that the user typed, without the folder of this run."""
    if not (line := run.lineage):
        return ["train", *_elsewhere(run.overrides)]
    dropped = ["--drop", ",".join(line["drop"])] if line["drop"] else []
    forget = ["--forget-parts"] if line["forget_parts"] else []
    return ["rollback", line["parent"], "--step", str(line["step"]), *dropped, *forget, *_elsewhere(line["overrides"])]


def _elsewhere(overrides: list[str]) -> list[str]:
    return [text for text in overrides if not text.lstrip("+").startswith("out=")]
