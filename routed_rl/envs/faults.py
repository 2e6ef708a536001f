"""Describes a fault of a plug-in in one line of text: the line of its code, what happened, and the likely remedy.

A line of code belongs to a plug-in if its file is neither in this package nor in Python's library. Lines of installed packages
are named only if there is no other line. Code that a plug-in generates (`exec`) has no file and is passed over.
"""

import inspect
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from routed_rl.errors import RoutedRLError, TaskError

LONGEST = 200
"""Largest number of characters of `Failure.reason`."""
OURS = str(Path(__file__).parents[1]) + os.sep
PYTHON = sysconfig.get_path("stdlib") + os.sep
INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
VARIABLE = re.compile(r"\b[A-Z][A-Z0-9_]*_(?:KEY|TOKEN|SECRET|PASSWORD)\b")
"""Pattern of the names that environment variables with secrets have."""
ANY_TEXT = "a completion may be any text, empty too: return Score(0.0) for one that cannot be read"


Kind = Literal["error", "no score", "wrong number"]
"""The kinds of a failure. error: scoring raised, or gave no answer; no score: something was returned that is no `Score`; wrong
number: a `Score` was returned with a number that is not finite, too large or out of its range."""


@dataclass(frozen=True)
class Failure:
    """Says why a completion could not be scored, or a task could not be made. A failure is counted; it does not become a reward
    of 0."""

    reason: str
    fatal: bool = False
    """Whether every completion will fail in this way, because the environment itself is wrong."""
    place: str = ""
    """`FILE:LINE` in the plug-in; empty if the line is not known, or if the failure has nothing to do with the plug-in."""
    remedy: str = ""
    kind: Kind = "error"

    @property
    def breaks_contract(self) -> bool:
        """Whether the plug-in itself is wrong: it returned no `Score`, or a `Score` whose flag or metric has a wrong name. After
        an exception or a wrong number this is False, because other completions may be scored well."""
        return self.fatal or self.kind == "no score"

    @property
    def text(self) -> str:
        """`FILE:LINE: reason; remedy`, without the parts that are not known."""
        return f"{self.place and f'{self.place}: '}{self.reason}{self.remedy and f'; {self.remedy}'}"

    def of(self, name: str) -> str:
        """`text`, preceded by the name of the environment."""
        return f"environment {name}{':' if self.place else ''} {self.text}"


class ContractError(ValueError):
    """A plug-in returned something that the contract does not allow. The message says what it returned, `remedy` says what to
    write instead, and `kind` is that of the `Failure` that it becomes."""

    def __init__(self, problem: str, remedy: str, place: str = "", kind: Kind = "error") -> None:
        super().__init__(problem)
        self.remedy, self.place = remedy, place
        self.kind: Kind = kind


class Reported(TaskError):
    """An error that stands for a failure which has been described already, such as one that an environment's own process has
    reported."""

    def __init__(self, failure: Failure, name: str | None = None) -> None:
        """The message also names the environment, if its `name` is given."""
        super().__init__(failure.of(name) if name else failure.text)
        self.failure = failure


def failure_of(error: BaseException, doing: str = "raised", at: Callable[[], str] = str, data: Mapping[str, Any] | None = None
               ) -> Failure:
    """Describe an exception as a failure. The reason begins with `doing`, except for a ContractError. `at` returns the place to
    name if the traceback has no line of a plug-in. `data` is the data of the task that was scored; it helps to find the
    remedy."""
    if isinstance(error, Reported):
        return error.failure
    place = (error.place if isinstance(error, ContractError) else "") or place_of(error) or at()
    reason = str(error) if isinstance(error, ContractError) else f"{doing} {describe(error)}"
    helps = place or isinstance(error, (ContractError, ImportError))
    return Failure(shortened(reason), place=place, remedy=_remedy(error, data) if helps else "",
                   kind=error.kind if isinstance(error, ContractError) else "error")


@contextmanager
def blamed(name: str, doing: str = "raised", at: Callable[[], str] = str) -> Iterator[None]:
    """Inside the block, any exception becomes a TaskError that names the environment `name`, the line of the plug-in and the
    remedy. `doing` and `at` are as in `failure_of`."""
    try:
        yield
    except RoutedRLError as error:
        if isinstance(error, Reported) and not str(error).startswith(f"environment {name}"):
            raise Reported(error.failure, name) from error
        raise
    except (Exception, SystemExit) as error:
        raise Reported(failure_of(error, doing, at), name) from error


def shortened(reason: str) -> str:
    """`reason` as one line, cut to `LONGEST` characters."""
    return " ".join(reason[:1000].split())[:LONGEST]


def describe(error: BaseException) -> str:
    """The type and the message of an error; if its message cannot be read, the text says so."""
    try:
        return f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__
    except Exception:
        return f"{type(error).__name__}, whose message cannot be shown"


def place_of(error: BaseException) -> str:
    """`FILE:LINE` of the innermost line of a plug-in that led to `error`; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename and _foreign(error.filename):
        return _shown(error.filename, error.lineno or 1)
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    foreign = [(file, line) for file, line in lines if _foreign(file)]
    own = [(file, line) for file, line in foreign if not any(part in file for part in INSTALLED)]
    return _shown(*(own or foreign)[-1]) if foreign else ""


def definition(function: Any) -> str:
    """`FILE:LINE` at which a function or class of a plug-in is defined; empty if `function` belongs to this package or has no
    source."""
    if isinstance(function, type):
        function = function.__dict__.get("__init__", function)
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = getattr(function, "func", None) or type(function).__call__
    try:
        function = inspect.unwrap(function)
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        file, line = (code.co_filename, code.co_firstlineno) if code else (
            inspect.getsourcefile(function) or "", inspect.getsourcelines(function)[1])
    except (OSError, TypeError, ValueError):
        return ""
    return _shown(file, line) if _foreign(file) else ""


def _foreign(file: str) -> bool:
    installed = any(part in file for part in INSTALLED)
    return not file.startswith((OURS, "<")) and (installed or not file.startswith(PYTHON))


def _shown(file: str, line: int) -> str:
    """The place `FILE:LINE`, relative to the current folder if the file is inside it."""
    try:
        file = str(Path(file).relative_to(Path.cwd()))
    except (OSError, ValueError):
        pass
    return f"{file}:{line}"


def _remedy(error: BaseException, data: Mapping[str, Any] | None) -> str:
    """The likely remedy for an exception in a plug-in. `data`: the data of the task that was scored; None if the exception did
    not come from scoring."""
    secret = next((name for name in VARIABLE.findall(describe(error)) if name not in os.environ), None)
    match error:
        case ContractError():
            return error.remedy
        case _ if secret and not (data and secret in data):
            return f"an environment's process sees no secret: export {secret} and set env.NAME.token_env={secret}"
        case ModuleNotFoundError(name=str(module)):
            return f"pip install what has {module}, or put {module.partition('.')[0]}.py beside the plug-in"
        case ImportError() if "relative import" in describe(error):
            return "write import NAME without dots: the folder of the plug-in is searched"
        case SyntaxError():
            return "correct the code there"
        case SystemExit():
            return 'leave exit() out; what a script does goes under if __name__ == "__main__":'
        case NameError(name=str(name)):
            return f"define or import {name}"
        case KeyError(args=(str(key),)) if data and key not in data:
            return f"the task's data has {', '.join(map(str, [*data][:8]))}"
        case TypeError() if "Score.__init__()" in describe(error):
            return 'Score takes reward, solve, flags, metrics and spans; give other numbers as metrics={"name": NUMBER}'
        case TypeError() if "Task.__init__()" in describe(error):
            return 'Task takes a prompt and data: write Task(prompt, {"answer": ANSWER})'
        case TypeError() | AttributeError() if data is not None and "'Task' object" in describe(error):
            return f"read task.data[KEY]; the task's data has {', '.join(map(str, [*data][:8])) or 'no keys'}"
        case AttributeError(obj=None, name="global_step" | "max_steps" | "epoch"):
            return "an environment has no trainer_state: pay without it, or test whether it is None"
        case AttributeError(obj=None):
            return "a function such as re.search gives None where it finds nothing: test for that first"
        case UnicodeError():
            return 'a completion may hold any characters: encode it with errors="replace"'
        case RecursionError() | MemoryError():
            return "limit what one completion can make it do"
        case _:
            return "correct the code there" if data is None else f"correct the code there; {ANY_TEXT}"
