"""Functions that parse the values of command line options: lists of names, numbers, and pairs."""

import os
import re
from typing import TypeVar

from routed_rl.config import AUTO, check_share
from routed_rl.errors import ConfigError

Number = TypeVar("Number", int, float)


HOME = re.compile(r"(?:^|(?<=[,=]))~(?=/|$)")
PLACE = re.compile(r"DIR|FILE|RUN")
"""Pattern of the metavars of options that name files or folders."""


def at_home(text: str) -> str:
    """The value of an option that names files or folders, with the home folder in place of `~`. A shell replaces `~` only at the
    beginning of a word, so not in --out=~/x, not in NAME=~/x, and not behind the comma of RUN,~/RUN."""
    return HOME.sub(lambda _: os.path.expanduser("~"), text)


def names(lists: list[str] | None) -> list[str] | None:
    """The names in an option that takes NAME[,NAME] and may be repeated. None if the option was not given."""
    return None if lists is None else [name.strip() for each in lists for name in each.split(",") if name.strip()]


def assigned(text: str | None) -> list[str]:
    """The settings in `text`, the value KEY=VALUE[,..] of an option. A comma within brackets belongs to a value."""
    return [each.strip() for each in re.split(r",(?![^\[{]*[\]}])", text or "") if each.strip()]


def paths(lists: list[str] | None) -> list[str]:
    """The paths in an option that takes PATH[,PATH] and may be repeated. A path that exists is one path, also with commas in
    it."""
    return [path for each in lists or [] for path in ([each] if os.path.exists(each) else names([each]) or [])]


def numbers(option: str, text: str, kind: type[Number], example: str) -> list[Number]:
    """The numbers in `text`, the value N[,N] of `option`. ConfigError if one is no number; the message shows `example`, a valid
    value."""
    try:
        return [kind(number) for number in text.split(",") if number]
    except ValueError:
        raise ConfigError(f"{option} {text} is no list of numbers; write {option} {example}") from None


def number_or_auto(option: str, text: str | None) -> float | str | None:
    """The number, or `AUTO`, in `text`, the value of `option`. None if the option was not given."""
    try:
        return text if text in (None, AUTO) else float(text)
    except ValueError:
        raise ConfigError(f"{option} {text} is no number; write a number, or {AUTO}") from None


def shares(given: list[str] | None) -> dict[str, float | str]:
    """Parse --keep NAME=SHARE: for each environment, the share of its part of the quarantine that is kept."""
    found: dict[str, float | str] = {}
    for text in names(given) or []:
        name, equals, share = text.partition("=")
        if not name or not equals or name in found:
            problem = f"gives {name} a second time" if name in found else "is no share of a part"
            raise ConfigError(f"--keep {text} {problem}; write --keep NAME=SHARE, such as --keep NAME=.5 or --keep NAME=auto")
        found[name] = check_share(f"--keep {name}", share)
    return found


def refuse_fixed(overrides: list[str], fixed: dict[str, str]) -> None:
    """Raise ConfigError for an override of a setting whose value the command takes from elsewhere, because the override would do
    nothing. `fixed` maps each such setting to the words that give its value, such as `--out DIR`, for the message."""
    for text in overrides:
        if (by := fixed.get(text.partition("=")[0].lstrip("+"))) is not None:
            raise ConfigError(f"{text} does nothing here, because {by} says it; leave {text} out")


def places(option: str, given: list[str] | None) -> dict[str, str]:
    """Parse the values NAME=DIR of an option that may be repeated. Returns the folder DIR of each name."""
    found: dict[str, str] = {}
    for text in given or []:
        name, _, place = text.partition("=")
        if not place or name in found or not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"{option} {text} is no new name with a place; write {option} NAME=DIR, with another name for each")
        found[name] = place
    return found
