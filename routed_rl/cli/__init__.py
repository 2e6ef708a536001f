"""The command line. Every error is shown in one line. Exit codes: 0 done, 1 internal, 2 the user's error, 3 halted by the
monitor, 4 a check failed, 130 interrupted, 141 nobody reads the output, 143 or 138 stopped by SIGTERM or SIGUSR1 (a training run
after a checkpoint).

Nothing heavy is imported before the first line is on the screen; `--help` needs only the standard library.
"""

import sys
from typing import NoReturn

from routed_rl import __version__
from routed_rl.cli.parser import run
from routed_rl.cli.verbs import usage
from routed_rl.exits import guarded, leave_at_the_end

COMPLETE = "--complete"
"""The first argument with which a shell asks for completions of the last word."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit code. Without arguments, print the help."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"routed-rl {__version__}")
        return 0
    if argv[0] == COMPLETE:
        from routed_rl.cli.completion import candidates

        for each in candidates(argv[1:]):
            print(each)
        return 0
    return guarded(lambda: run(argv), argv)


def program() -> NoReturn:
    """The command `routed-rl`: run one verb, and end the process with its exit code."""
    end = leave_at_the_end()
    code = main()
    end(code)
    sys.exit(code)
