"""Runs the command line of one verb: makes a parser from the verb's entry in `VERBS`, and calls the verb's action."""

import argparse
import difflib
import importlib
import os
from typing import Any, NoReturn

from routed_rl.cli.verbs import CONFIG, MATTER, PASSWORD, RUN, VERBS
from routed_rl.cli.waiting import waiting
from routed_rl.cli.words import PLACE, at_home
from routed_rl.errors import ConfigError

MAY_BE_EMPTY = ("ranks", "password", "overrides")
"""Arguments that may be empty: `--ranks ""` is for no ranks, and `--password`, which is always refused, says why itself."""
GIVEN = "given_once"
"""The attribute of the parsed arguments that maps each option given so far to its value."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


class _Once(argparse.Action):
    """Stores the value of an option, and refuses the option if it is given twice, because only one value could count."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        if self.dest in (given := vars(namespace).setdefault(GIVEN, {})):
            parser.error(f"{option_string} is given twice, {given[self.dest]} and {values}; leave one of them out")
        given[self.dest] = values
        setattr(namespace, self.dest, values)


def run(argv: list[str]) -> None:
    """Run the verb that the command line names; for an unknown verb the error names the nearest one."""
    if odd := next((text for text in argv if text.encode(errors="replace").decode() != text), None):
        raise ConfigError(f"{odd!r} has bytes that are no UTF-8, so no record of it could be written; give it another name")
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError("the present folder was removed or cannot be read, so no path is known here; go to another one with "
                          "`cd`") from error
    name = argv[0]
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(VERBS)}"
        raise ConfigError(f"unknown command {name}; {hint}")
    verb = VERBS[name]
    parser = _Parser(prog=f"routed-rl {name}", description=verb.help, allow_abbrev=False,
                     epilog=MATTER if CONFIG in verb.options else None)
    for names, declared in verb.options:
        once: dict[str, Any] = {"action": _Once} if names[0].startswith("-") else {}
        place: dict[str, Any] = {"type": at_home} if PLACE.search(declared.get("metavar") or "") else {}
        parser.add_argument(*names, **once | place | declared)
    arguments = parser.parse_intermixed_args(argv[1:])
    _refuse_empty(name, arguments)
    if not verb.says:
        _act(name, arguments)
        return
    # A question for a password stands on the terminal, too, and nothing may be written over it.
    with waiting(f"routed_rl: {verb.says}", count=PASSWORD[0] not in verb.options):
        _act(name, arguments)


def _refuse_empty(name: str, arguments: argparse.Namespace) -> None:
    """Raise ConfigError for an argument that is empty, as that of a script whose variable is not set. It would mean the present
    folder, or nothing at all."""
    for names, declared in VERBS[name].options:
        given = getattr(arguments, (dest := names[0].lstrip("-").replace("-", "_")), None)
        if dest not in MAY_BE_EMPTY and "" in (given if isinstance(given, list) else [given]):
            value, is_option = declared.get("metavar", "a value"), names[0].startswith("-")
            leave = ", or leave it out" if is_option and not declared.get("required") else ""
            raise ConfigError(f"{names[0] if is_option else value} is empty; give {'one' if not is_option else value}{leave}")


def _act(name: str, arguments: argparse.Namespace) -> None:
    if RUN in VERBS[name].options:
        from routed_rl.artifacts import RunFolder

        RunFolder.open(arguments.run)  # before the libraries of the verb are imported, which takes up to ten seconds
    if "overrides" in arguments:
        arguments.typed = arguments.overrides  # a file of --config has the settings of an experiment, whatever the command
    if getattr(arguments, "config", None) is not None:
        from routed_rl.cli.settings_file import overrides_of

        arguments.overrides = [*overrides_of(arguments.config), *arguments.overrides]
    actions = importlib.import_module(f"routed_rl.cli.{VERBS[name].module}")  # its imports take a while
    getattr(actions, name)(arguments)
