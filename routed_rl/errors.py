"""The errors that a user can cause. Each message is one line, which says what is wrong (with the setting or file, and its value)
and how to put it right."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RoutedRLError(Exception):
    """Base of every error that `routed-rl` reports without a traceback; exit code 2."""


class ConfigError(RoutedRLError, ValueError):
    """A setting is unknown, misspelt, out of range, or contradicts another one."""


class SubspaceError(RoutedRLError, ValueError):
    """A subspace cannot be found, does not fit the model, or is empty."""


class ModelError(RoutedRLError, ValueError):
    """A model cannot be loaded or routed."""


class CheckFailed(RoutedRLError):
    """A check that a user asked for has failed; exit code 4."""


class TaskError(RoutedRLError, RuntimeError):
    """An environment cannot be loaded, yields no tasks, or fails to score too often."""


class Halted(RoutedRLError):
    """The monitor stopped a run, which has a complete checkpoint; exit code 3. `run` is the path of the run folder."""

    def __init__(self, message: str, run: str) -> None:
        super().__init__(message)
        self.run = run


class Stopped(RoutedRLError):
    """A signal ended a run, which has a complete checkpoint. `signal` is the number of the signal; exit code 128 + that
    number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class LaunchError(RoutedRLError, RuntimeError):
    """The processes of a run cannot start, do not find each other, or one of them was lost."""


class Unread(KeyboardInterrupt):
    """Nobody reads the output any more, as behind `| head`. It ends a command as Ctrl-C does, and is no ordinary exception,
    because such an exception could be taken for a failure of a plug-in; exit code 141."""


class CheckpointError(RoutedRLError, OSError):
    """A checkpoint is missing, torn, or belongs to another run."""


class RunFolderError(RoutedRLError, FileExistsError):
    """A run folder is missing or already holds a run."""


class RunsFailed(RoutedRLError):
    """Some of several runs failed, and the results of the others are written."""


class SandboxError(RoutedRLError, RuntimeError):
    """Untrusted code cannot be run: no sandbox works here, a jail did not start, or the request to run the code is refused."""


class RolloutError(RoutedRLError, ConnectionError):
    """The engine of the rollouts cannot start, does not answer, or serves another model."""


class SharingError(RoutedRLError, ValueError):
    """A data set cannot be shared as asked for, or an archive of one cannot be opened."""


class HubError(RoutedRLError, ConnectionError):
    """The Hugging Face hub cannot be reached, or refuses what is sent."""


class ParityError(CheckFailed):
    """The engine of the rollouts and the trainer do not agree on a log-probability."""


@contextmanager
def reading(kind: type[RoutedRLError], what: str) -> Iterator[None]:
    """Inside the block, a RoutedRLError passes unchanged. Any other exception, such as a library's for a damaged file, becomes an
    error of the class `kind`, whose message is one line that begins with `what`."""
    try:
        yield
    except RoutedRLError:
        raise
    except Exception as error:
        raise kind(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def command(*words: object) -> str:
    """The shell command `routed-rl WORDS`, with quotes where needed. If the user called the program by a path, because it is not
    on PATH, the command begins with that path."""
    called = Path(sys.argv[0]).name == "routed-rl" and shutil.which("routed-rl") is None
    return shlex.join([sys.argv[0] if called else "routed-rl", *map(str, words)])
