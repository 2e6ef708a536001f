"""`env list`, `env try` and `env check`: what environments there are, what they do, whether they are sound."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import find_data
from routed_rl.envs import LoadedEnvironment, Score, Task, load_environments
from routed_rl.envs.check import Evidence, Finding, findings, gather, unsound
from routed_rl.envs.scoring import describe, score_many
from routed_rl.errors import CheckFailed, ConfigError, RoutedRLError
from routed_rl.inspection.entries import Compose, Entry, classes, entries_of, first_line, mixes, named
from routed_rl.inspection.markdown import write_block

JUNK = "0"
AT_ONCE = 2
"""Environments that are started or checked at the same time."""
SAMPLES = 20
CHECK_TIMEOUT_S = 10.0
"""Seconds one scoring may take in a check, where no other limit is set."""


def list_environments(compose: Compose) -> None:
    """Every environment of configs/env, then the classes of environments/ that no mix uses; a broken one with its reason."""
    entries = [entry for mix in mixes() for entry in entries_of(mix, [], compose)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        facts = list(pool.map(_facts, entries))
    for entry, (variant, problem) in zip(entries, facts, strict=True):
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
        console.say(f"{loaded.label}  ({entry.class_name})")
        for task in itertools.islice(loaded.environment.tasks("train", 0), count):
            console.say(f"\n{show_prompt(task)}")
            gold = getattr(loaded.environment, "gold", None)
            shown: list[tuple[str, Any]] = [("gold", gold(task))] if callable(gold) else []
            for kind, completion in [*shown, ("junk", JUNK)]:
                result = score_many(loaded.environment, [(task, completion)])[0]
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
    rows: list[tuple[str, list[Finding]]] = []
    with ThreadPoolExecutor(AT_ONCE) as pool, console.progress("check", "environments") as advance:
        for entry, found in zip(entries, pool.map(lambda entry: check_one(entry, samples), entries), strict=True):
            rows.append((entry.name, found))
            advance(len(rows), len(entries), entry.name)
    titles = ["environment", *(finding.check for finding in rows[0][1])]
    cells = [[label, *(mark(finding) for finding in found)] for label, found in rows]
    console.table("- was not judged", titles, [list(row) for row in cells])
    if markdown:
        write_block(Path(markdown), titles, cells)
    if bad := [label for label, found in rows if unsound(found)]:
        raise CheckFailed(f"{len(bad)} of {len(rows)} environments are not sound: {', '.join(bad[:8])}"
                          f"{' ...' if len(bad) > 8 else ''}")


def check_one(entry: Entry, samples: int) -> list[Finding]:
    """Every finding; an environment that cannot be built has one that says so."""
    opened: list[LoadedEnvironment] = []

    limit = {"isolate": {"timeout_s": CHECK_TIMEOUT_S}} if entry.settings.get("isolate", True) is True else {}
    limited = Entry(entry.mix, entry.name, entry.settings | limit)

    def make() -> Any:
        opened.append(_load(limited))
        return opened[-1].environment

    try:
        return findings(gather(make, samples))
    except RoutedRLError as error:
        return findings(Evidence(problem=describe(error)))
    finally:
        for loaded in opened:
            if callable(close := getattr(loaded.environment, "close", None)):
                close()


def variations(entry: Entry) -> list[Entry]:
    """The entry under each setting that its class offers in `all_settings`, named by what differs."""
    environment: Any = _load(Entry(entry.mix, entry.name, entry.settings | {"isolate": True})).environment
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


def _facts(entry: Entry) -> tuple[str, str]:
    """(variant, what is wrong with it)."""
    try:
        environment = _load(entry).environment
    except RoutedRLError as error:
        return "", " ".join(str(error).split())
    if callable(close := getattr(environment, "close", None)):
        close()
    return str(getattr(environment, "variant", None) or ""), ""


def _load(entry: Entry) -> LoadedEnvironment:
    return load_environments({entry.name: entry.settings})[0]
