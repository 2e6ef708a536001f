"""`env list`, `env try` and `env check`: what environments there are, what they do, whether they are sound."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from routed_rl import console
from routed_rl.artifacts import find_data
from routed_rl.config import Compose
from routed_rl.envs import (
    Environment,
    EnvironmentProcess,
    LoadedEnvironment,
    Played,
    Score,
    Task,
    has_episodes,
    load_environments,
)
from routed_rl.envs.check import COLUMNS, Finding, findings, gather, unsound
from routed_rl.envs.loading import arguments_of
from routed_rl.envs.scoring import accepted, score_many
from routed_rl.errors import CheckFailed, ConfigError, RoutedRLError, TaskError
from routed_rl.inspection.entries import Entry, classes, entries_of, first_line, mixes, named
from routed_rl.inspection.markdown import write_block

JUNK = "0"
AT_ONCE = 2
"""Environments that are started at the same time."""
SAMPLES = 20
CHECK_TIMEOUT_S = 10.0
"""Seconds one scoring may take in a check, where no other limit is set."""


def list_environments(compose: Compose) -> None:
    """Every environment of configs/env, then the classes of environments/ that no mix uses; a broken one with its reason."""
    entries = [entry for mix in mixes() for entry in entries_of(mix, [], compose)]
    paths = dict.fromkeys(str(entry.settings.get("path")) for entry in entries)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda path: _facts([entry for entry in entries if str(entry.settings.get("path")) == path]), paths)
        facts = {id(entry): fact for each in found for entry, fact in each}
    for entry in entries:
        variant, problem = facts[id(entry)]
        words = " ".join(dict.fromkeys([variant, *(["probe"] if entry.settings.get("probe") else [])]))
        about = f"BROKEN: {problem}" if problem else first_line(str(entry.settings["path"]))
        console.say(f"{entry.mix + '/' + entry.name:28} {entry.class_name:18} {words:16} {about}")
    used = {str(entry.settings.get("path")) for entry in entries}
    for path, about in classes():
        if str(find_data(path.rpartition(":")[0])) + ":" + path.rpartition(":")[2] not in used:
            console.say(f"{path:64} {about}")


def try_environments(name: str, count: int, overrides: list[str], compose: Compose) -> None:
    """`count` prompts of each environment that `name` names, with a gold and a junk completion and how they score."""
    for entry in named(name, overrides, compose):
        loaded = _load(entry)
        environment = _scored(loaded.environment)
        console.say(f"{loaded.label}  ({entry.class_name})")
        tasks = list(itertools.islice(environment.tasks(entry.split, 0), count))
        if not tasks:
            raise TaskError(f"environment {entry.name} has no task for split {entry.split!r}")
        for task in tasks:
            console.say(f"\n{show_prompt(task)}")
            gold = getattr(environment, "gold", None)
            known: Any = gold(task) if callable(gold) else None
            for kind, completion in [*([] if known is None else [("gold", known)]), ("junk", JUNK)]:
                result = accepted(score_many(environment, [(task, completion)])[0])
                said = " ".join(f"{key} {value:g}" for key, value in result.values().items()) if isinstance(result, Score) \
                    else f"FAILED: {result.reason}"
                console.say(f"  {kind:5} {completion!r:.300}: {said}")
        console.say("")


def check_environments(name: str, overrides: list[str], compose: Compose, *, every: bool = False, samples: int = SAMPLES,
                       markdown: str | None = None) -> None:
    """Check what `name` names; `every`: each of the class's `all_settings()`. CheckFailed where one is not sound."""
    entries = named(name, overrides, compose)
    if every:
        entries = [variation for entry in entries for variation in variations(entry)]
    rows: list[list[str]] = []
    bad: list[str] = []
    opened: list[EnvironmentProcess] = []
    last: Entry | None = None
    with console.progress("check", "environments") as advance:
        for entry in entries:
            if not (every and last and last.settings["path"] == entry.settings["path"]):
                close(opened)
            found, last = check_one(entry, samples, opened), entry
            rows.append([entry.name, *map(mark, found)])
            bad += [entry.name] if unsound(found) else []
            advance(len(rows), len(entries), entry.name)
            if markdown:
                write_block(Path(markdown), ["environment", *COLUMNS], rows)
    close(opened)
    console.table("- was not judged", ["environment", *COLUMNS], [list(row) for row in rows])
    if bad:
        raise CheckFailed(f"{len(bad)} of {len(rows)} environments are not sound: {', '.join(bad[:8])}"
                          f"{' ...' if len(bad) > 8 else ''}")


def check_one(entry: Entry, samples: int, opened: list[EnvironmentProcess]) -> list[Finding]:
    """Every finding; an environment that raises when it is built has one that says so.

    `opened` keeps two processes from one entry to the next of the same class, so that its libraries are imported twice in all.
    """
    limit = {"isolate": {"timeout_s": CHECK_TIMEOUT_S}} if entry.settings.get("isolate", True) is True else {}
    waiting = list(opened)

    def make() -> Any:
        if waiting:
            return _scored(reopened(entry, waiting.pop(0)))
        environment = _load(Entry(entry.mix, entry.name, entry.settings | limit)).environment
        if isinstance(environment, EnvironmentProcess):
            opened.append(environment)
        return _scored(environment)

    return findings(gather(make, samples, split=entry.split))


def close(opened: list[EnvironmentProcess]) -> None:
    """End every process of the list, and empty it."""
    for environment in opened:
        environment.close()
    opened.clear()


def variations(entry: Entry) -> list[Entry]:
    """The entry under each setting that its class offers in `all_settings`, named by what differs."""
    environment: Any = _load(alone(entry)).environment
    every: list[dict[str, Any]] = environment.description["all_settings"]
    environment.close()
    if not every:
        raise ConfigError(f"{entry.class_name} offers no all_settings(); leave out --all")
    varying = [key for key in every[0] if any(settings.get(key) != every[0][key] for settings in every)]
    return [Entry(entry.mix, " ".join(str(settings.get(key)) for key in varying) or entry.name, entry.settings | settings)
            for settings in every]


def show_prompt(task: Task) -> str:
    """The prompt, indented; of chat messages the role before each."""
    messages = [task.prompt] if isinstance(task.prompt, str) else [f"{turn['role']}: {turn['content']}" for turn in task.prompt]
    return "\n".join(f"  | {line}" for message in messages for line in message.splitlines() or [""])


def mark(finding: Finding) -> str:
    """For a table: a dash where it could not be judged, `ok`, or what is wrong."""
    return "-" if finding.sound is None else "ok" if finding.sound else finding.detail


def _facts(entries: list[Entry]) -> list[tuple[Entry, tuple[str, str]]]:
    """(variant, what is wrong with it) of entries of one class, one after another in one process."""
    opened: list[EnvironmentProcess] = []
    found: list[tuple[Entry, tuple[str, str]]] = []
    for entry in entries:
        try:
            environment = reopened(entry, opened[0]) if opened else _load(alone(entry)).environment
            if isinstance(environment, EnvironmentProcess):
                opened[:] = [environment]
            found.append((entry, (str(getattr(environment, "variant", None) or ""), "")))
        except RoutedRLError as error:
            close(opened)
            found.append((entry, ("", " ".join(str(error).split()))))
    close(opened)
    return found


def alone(entry: Entry) -> Entry:
    """In a process of its own, whatever its settings say."""
    isolate = entry.settings.get("isolate", True)
    return Entry(entry.mix, entry.name, entry.settings | {"isolate": isolate or True})


def reopened(entry: Entry, process: EnvironmentProcess) -> EnvironmentProcess:
    """`process` as the environment of another entry of the same class."""
    process.rebuild(arguments_of(entry.settings))
    _ = process.description  # Waits until it is that one, and raises where it cannot be.
    return process


def _load(entry: Entry) -> LoadedEnvironment:
    return load_environments({entry.name: entry.settings})[0]


def _scored(environment: Any) -> Environment:
    """Itself, or played with one text as every turn."""
    return cast(Environment, Played(environment) if has_episodes(environment) else environment)
