"""The interface that every sandbox has, whatever confines the program."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from routed_rl.sandbox.limits import Limits, Outcome, Request


class Sandbox(ABC):
    """Runs untrusted programs, each in a jail of its own. Several threads may use it at once."""

    name: str
    """The name by which `find_sandbox` knows this kind of sandbox."""
    confines_by: str
    """A text that says how this sandbox caps memory and processes."""

    def run(self, argv: Sequence[str], files: Mapping[str, str | bytes] | None = None, stdin: bytes = b"",
            limits: Limits | None = None, collect: Sequence[str] = ()) -> Outcome:
        """Run the command `argv` in a new jail, in a working directory that holds `files` and nothing else. The outcome holds the
        files that are named in `collect`.

        `["python", FILE, ...]` is run by an interpreter that has already started; other arguments of python start a second one.
        There is no other program in the jail. SandboxError if the request is refused or no jail starts; any other problem is
        reported in the `Outcome`.
        """
        return self.run_request(Request(argv, files or {}, stdin, limits or Limits(), collect))

    @abstractmethod
    def run_request(self, request: Request) -> Outcome:
        """Run a checked request, as `run` does."""

    def does_not_work(self, wall_s: float) -> str:
        """The reason why the simplest program does not run here within `wall_s` seconds; empty if it runs."""
        outcome = self.run(["python", "hello.py"], {"hello.py": "print('hello')"}, limits=Limits(wall_s=wall_s))
        works = outcome.ok and outcome.stdout == b"hello\n"
        return "" if works else f"{outcome.reason} {outcome.stderr[-200:].decode(errors='replace')}"
