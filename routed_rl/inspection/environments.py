"""The verbs `env list`, `env try` and `env check`: which environments there are, what they do, and whether they are sound."""

import itertools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from routed_rl import console
from routed_rl.artifacts import check_file, find_data
from routed_rl.config import Compose
from routed_rl.envs import Environment, EnvironmentProcess, Played, Score, Task, has_episodes, load_environments
from routed_rl.envs.check import CHECKS, Finding, findings, gather, unsound
from routed_rl.envs.contract import gold_of, lines_of, tasks_of
from routed_rl.envs.faults import Failure, blamed
from routed_rl.envs.loading import arguments_of
from routed_rl.envs.mixture import MAKING
from routed_rl.envs.scoring import accepted, score_many, scorer_line
from routed_rl.errors import CheckFailed, ConfigError, RoutedRLError, TaskError
from routed_rl.inspection.entries import Entry, classes, first_line, folder_of, listed, mixes, named
from routed_rl.inspection.markdown import write_block

JUNK = "0"
AT_ONCE = 2
"""How many environments are started at the same time."""
SAMPLES = 20
CHECK_TIMEOUT_S = 10.0
"""Seconds that one scoring may take in a check, unless another limit is set."""


class Reused:
    """A set of processes. Each is rebuilt as one environment after another, so that it imports its libraries only once. Two
    environments can be built in the same process if the function `together` returns the same value for them; by default it
    returns their class.

    Must be closed at the end.
    """

    def __init__(self, together: Callable[[Entry], object] = lambda entry: entry.path) -> None:
        self.together = together
        self.kept: list[EnvironmentProcess] = []
        self.kind: object = None

    def open(self, entry: Entry, place: int = 0) -> Any:
        """The entry's environment in process number `place`. If that process does not exist, it is started. If the processes
        cannot be rebuilt as this environment, they are ended first."""
        kind = self.together(entry), entry.settings.get("isolate")
        if kind != self.kind:
            self.close()
        self.kind = kind
        if place < len(self.kept):
            environment = self.kept[place]
            environment.rebuild(arguments_of(entry.settings), entry.settings.get("stages"), name=entry.name, path=entry.path)
            _ = environment.description  # Waits until the environment is rebuilt, and raises if that fails.
            return environment
        environment = load_environments({entry.name: entry.settings})[0].environment
        if isinstance(environment, EnvironmentProcess):
            self.kept.append(environment)
        return environment

    def close(self) -> None:
        while self.kept:
            self.kept.pop().close()


def list_environments(compose: Compose) -> None:
    """List every environment of configs/env, then the classes of environments/ that no mix uses. For an environment that cannot
    be built the reason is shown."""
    entries = [entry for mix in mixes() for entry in listed(mix, compose)]
    by_folder: dict[object, list[Entry]] = {}
    for entry in entries:
        by_folder.setdefault(folder_of(entry), []).append(entry)
    facts: dict[int, tuple[str, str]] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool, console.progress("start", "files of environments") as advance:
        for done, found in enumerate(pool.map(_facts, by_folder.values()), 1):
            facts |= found
            advance(done, len(by_folder))
    for entry in entries:
        variant, problem = facts[id(entry)]
        words = " ".join(dict.fromkeys([variant, *(["probe"] if entry.settings.get("probe") else [])]))
        about = f"BROKEN: {problem}" if problem else first_line(entry.path)
        console.say(f"{entry.mix + '/' + entry.name:28} {entry.class_name:18} {words:16} {about}")
    used = {entry.path for entry in entries}
    for path, about in classes():
        if str(find_data(path.rpartition(":")[0])) + ":" + path.rpartition(":")[2] not in used:
            console.say(f"{path:64} {about}")


def _facts(entries: list[Entry]) -> dict[int, tuple[str, str]]:
    """For entries of one folder, {id(entry): (variant, problem)}. `variant` is the environment's attribute of this name, and
    `problem` says why the environment cannot be built; each is "" if there is none. Plug-ins of one folder share their helpers,
    so one process builds them all."""
    found: dict[int, tuple[str, str]] = {}
    with closing(Reused(folder_of)) as processes:
        for entry in entries:
            try:
                found[id(entry)] = str(getattr(processes.open(alone(entry)), "variant", None) or ""), ""
            except RoutedRLError as error:
                processes.close()
                found[id(entry)] = "", " ".join(str(error).split())
    return found


def try_environments(name: str, count: int, overrides: list[str], compose: Compose) -> None:
    """Show `count` prompts of each environment that `name` stands for, with a gold and a junk completion and their scores, and
    with the output of the environment's code. TaskError if a completion could not be scored."""
    bad: list[TaskError] = []
    for entry in named(name, overrides, compose):
        loaded = load_environments({entry.name: talking(entry.settings)})[0]
        environment = _scored(loaded.environment)
        console.say(f"{loaded.label}  ({entry.class_name})")
        with blamed(entry.name, MAKING, lambda environment=environment: lines_of(environment).get("tasks", "")):
            tasks = list(itertools.islice(tasks_of(environment, entry.split, 0), count))
        if not tasks:
            raise TaskError(_no_task(entry, environment).of(entry.name))
        for task in tasks:
            console.say(f"\n{show_prompt(task)}")
            with blamed(entry.name, "failed to make a gold completion:"):
                known = gold_of(environment, task)
            for kind, completion in [*([] if known is None else [("gold", known)]), ("junk", JUNK)]:
                result: Any = accepted(score_many(environment, [(task, cast(str, completion))])[0],
                                       lambda environment=environment: scorer_line(environment))
                said = " ".join(f"{key} {value:g}" for key, value in result.values().items()) if isinstance(result, Score) \
                    else f"FAILED: {result.text}"
                console.say(f"  {kind:5} {completion!r:.300}: {said}")
                bad += [] if isinstance(result, Score) else [TaskError(result.of(entry.name))]
        console.say("")
    if bad:
        raise bad[0]


def _no_task(entry: Entry, environment: Environment) -> Failure:
    return Failure(f"has no task for split {entry.split!r}", place=lines_of(environment).get("tasks", ""),
                   remedy=f"let tasks(split, seed) yield some for {entry.split!r}")


def talking(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings`, changed so that the output of the environment is shown."""
    isolate = settings.get("isolate", True)
    shown = {"show_output": True} | (isolate if isinstance(isolate, dict) else {})
    return settings | {"isolate": shown if isolate else isolate}


def check_environments(name: str, overrides: list[str], compose: Compose, *, every: bool = False, samples: int = SAMPLES,
                       markdown: str | None = None) -> None:
    """Check the environments that `name` stands for on `samples` tasks each. `every` checks all settings that the class offers in
    `all_settings()`; `markdown` is a file into which the table is written, too. TaskError if an environment has a mistake that
    prevents training; CheckFailed if one is not sound for another reason."""
    if markdown:
        check_file(Path(markdown), "--markdown")
    entries = named(name, overrides, compose)
    if every:
        entries = [variation for entry in entries for variation in variations(entry)]
    rows, told = list[list[str]](), list[list[str]]()
    bad: dict[str, list[Finding]] = {}
    with console.progress("check", "environments") as advance, closing(Reused()) as processes:
        for entry in entries:
            found = check_one(entry, samples, processes)
            rows.append([entry.name, *map(mark, found)])
            told.append([entry.name, *(finding.detail if finding.sound is False else mark(finding) for finding in found)])
            bad |= {entry.name: unsound(found)} if unsound(found) else {}
            advance(len(rows), len(entries), entry.name)
            if markdown:
                write_block(Path(markdown), ["environment", *CHECKS], told)
    console.table("a dash: this check could not be judged", ["environment", *CHECKS], [list(row) for row in rows])
    for each, wrong in bad.items():
        for finding in wrong:
            console.say(f"{finding.place and f'{finding.place}: '}{each}: {finding.check}: {finding.detail}; {finding.remedy}")
    if bad:
        mistaken = [each for each, wrong in bad.items() if any(finding.mistake for finding in wrong)]
        kind, what = (TaskError, "have a mistake in the plug-in") if mistaken else (CheckFailed, "are not sound")
        told = mistaken or [*bad]
        raise kind(f"{len(told)} of {len(rows)} environments {what}: {', '.join(told[:8])}{' ...' if len(told) > 8 else ''}")


def check_one(entry: Entry, samples: int, processes: Reused) -> list[Finding]:
    """Every finding about one environment, from `samples` tasks. If building the environment raises an error, there is one
    finding, which reports the error."""
    limit = {"isolate": {"timeout_s": CHECK_TIMEOUT_S}} if entry.settings.get("isolate", True) is True else {}
    places = itertools.count()
    limited = Entry(entry.mix, entry.name, entry.settings | limit)
    return findings(gather(lambda: _scored(processes.open(limited, next(places))), samples, split=entry.split))


def variations(entry: Entry) -> list[Entry]:
    """One entry for each of the settings that the class of `entry` offers in `all_settings()`. Each is named by its values of the
    keys in which these settings differ. ConfigError if the class offers none."""
    with closing(Reused()) as processes:
        every: list[dict[str, Any]] = processes.open(alone(entry)).description["all_settings"]
    if not every:
        raise ConfigError(f"{entry.class_name} offers no all_settings(); leave out --all")
    varying = [key for key in every[0] if any(settings.get(key) != every[0][key] for settings in every)]
    words = ["_".join(str(settings.get(key)) for key in varying) for settings in every]
    return [Entry(entry.mix, re.sub(r"[\s/.]+", "_", word) or entry.name, entry.settings | settings)
            for word, settings in zip(words, every, strict=True)]


def show_prompt(task: Task) -> str:
    """The prompt, indented; each chat message begins with its role."""
    messages = [task.prompt] if isinstance(task.prompt, str) else [f"{turn['role']}: {turn['content']}" for turn in task.prompt]
    return "\n".join(f"  | {line}" for message in messages for line in message.splitlines() or [""])


def mark(finding: Finding) -> str:
    """The cell of a finding in a table: a dash if it could not be judged, `ok` if the environment is sound in this respect,
    otherwise `NO`."""
    return "-" if finding.sound is None else "ok" if finding.sound else "NO"


def alone(entry: Entry) -> Entry:
    """The entry with settings that run it in a process of its own."""
    isolate = entry.settings.get("isolate", True)
    return Entry(entry.mix, entry.name, entry.settings | {"isolate": isolate or True})


def _scored(environment: Any) -> Environment:
    """The environment itself, or, if it has episodes, a wrapper that scores a completion by an episode in which every turn of the
    model is this completion."""
    return cast(Environment, Played(environment) if has_episodes(environment) else environment)
