"""One jail. It runs one program, and leaves nothing behind when it ends."""

import json
import marshal
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from routed_rl.errors import SandboxError
from routed_rl.sandbox.limits import MEBIBYTE, Outcome, Request
from routed_rl.sandbox.memory import WATCH_S, Group, Groups, passes
from routed_rl.sandbox.reply import CHUNK, Reader, Report

INSIDE = (Path(__file__).parent / "inside.py").read_text()
COMPILED = marshal.dumps(compile(INSIDE, "<jail>", "exec"))
BOOT = """import marshal
with open(0, "rb", closefd=False) as given:
    exec(marshal.loads(given.read(int(given.read(8)))))"""
"""A program that reads the compiled program of process 1 from standard input. To compile that program in the jail would take a
tenth of the time that a jail takes to start."""
INTERPRETER = ("-S", "-P", "-s", "-B", "-X", "utf8")
"""Flags of the interpreter: no installed packages, no imports from the working directory, no bytecode files."""
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
"""The environment variables in a jail. Hashes, and so the order of a set, are the same in every jail, because scores must not
depend on them."""
START_S = 20.0
"""Seconds that a jail may take to start; it takes about .02 on an idle machine."""


class Jail:
    """A jail that is starting or has started. Its interpreter starts in the background, before a program needs it. Use the jail
    in a `with` statement, whose end ends everything in the jail.

    The thread that made the jail must outlive it, because the kernel ends the jail when that thread ends.
    """

    def __init__(self, command: Sequence[str], filter: bytes, groups: Groups | None, uid: int = 0,
                 as_user: int | None = None) -> None:
        """`command` is the command line of bubblewrap, up to the interpreter and its flags; `filter` is the result of
        `seccomp_filter`. `groups` makes the control group that limits the jail's memory; None if there are no control groups.
        Process 1 of the jail switches to `uid`, unless that is 0. Bubblewrap itself runs as the user `as_user`, or as the current
        user."""
        self.groups, self.pidfd = groups, -1
        info_read, info_write = os.pipe()
        filter_read, filter_write = os.pipe()
        self.reply, reply_write = os.pipe()
        os.write(filter_write, filter)
        os.close(filter_write)
        mine = (info_write, filter_read, reply_write)
        words = [*command[:1], "--info-fd", str(info_write), "--seccomp", str(filter_read), *command[1:]]
        account: dict[str, Any] = {} if as_user is None else {"user": as_user, "group": as_user, "extra_groups": []}
        try:
            # The environment is empty, because bubblewrap's own is readable for whoever gets at its process.
            self.process = subprocess.Popen([*words, "-c", BOOT, "-", str(reply_write), str(uid)], env={}, cwd="/", bufsize=0,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                            pass_fds=mine, start_new_session=True, **account)
        finally:
            for descriptor in mine:
                os.close(descriptor)
        assert self.process.stdin
        said = b""
        try:
            self.process.stdin.write(b"%8d" % len(COMPILED) + COMPILED)
        except BrokenPipeError:
            pass  # The jail has already ended; the code below finds out why.
        while b"}" not in said and (part := os.read(info_read, CHUNK)):
            said += part
        os.close(info_read)
        try:
            self.pid = int(json.loads(said)["child-pid"])
            self.pidfd = os.pidfd_open(self.pid)
        except (ValueError, ProcessLookupError):
            self.fail()

    def fail(self) -> NoReturn:
        """End the jail and raise SandboxError with bubblewrap's message."""
        self.kill()
        assert self.process.stderr
        said = self.process.stderr.read(CHUNK).decode(errors="replace").split()
        self.close()
        raise SandboxError(f"a jail did not start: {' '.join(said)[-300:] or 'no message'}; `routed-rl doctor` tries it out")

    def run(self, request: Request) -> Outcome:
        """Run one program. This method must not be called twice."""
        if self.groups is None:
            self.wait_until_up()
            return self.watch(request, None)
        group = self.groups.take(request.limits.memory_mb * MEBIBYTE)
        try:
            with suppress(ProcessLookupError):  # The jail has already ended; the code below finds out why.
                group.add(self.pid)  # Takes the kernel a while, in which the interpreter starts.
            self.wait_until_up()
            return self.watch(request, group)
        finally:
            self.close()
            self.groups.give_back(group)

    def wait_until_up(self) -> None:
        up = select.poll()
        up.register(self.reply, select.POLLIN)
        if not up.poll(1000 * START_S) or os.read(self.reply, 1) != b"+":
            self.fail()

    def watch(self, request: Request, group: Group | None) -> Outcome:
        """Send the request, read the program's output and the report until all of them have ended or a limit is exceeded, and
        return the outcome. `group` is the control group that limits the jail's memory. If it is None, this process watches the
        memory instead."""
        process, said, limits = self.process, self.reply, request.limits
        assert process.stdin and process.stdout and process.stderr
        out, err = process.stdout.fileno(), process.stderr.fileno()
        reader = Reader({out: limits.output_bytes, err: limits.output_bytes, said: request.report_size})
        began, memory = time.monotonic(), limits.memory_mb * MEBIBYTE
        try:
            left = memoryview(request.encoded)
            while left:
                left = left[process.stdin.write(left):]
        except BrokenPipeError:
            self.fail()
        stopped = reader.read(began + limits.wall_s, WATCH_S if group is None else None, lambda: passes(self.pid, memory))
        self.close()
        wall_s, out_of_memory = time.monotonic() - began, group is not None and group.passed()
        stdout, stderr = bytes(reader.data[out]), bytes(reader.data[err])
        report = Report.parse(reader.data[said], request.collect)
        if stopped or report is None:
            reason = "memory" if out_of_memory else stopped or "signal"
            return Outcome(None, reason, stdout, stderr, {}, wall_s)
        return report.outcome(limits, out_of_memory=out_of_memory, stdout=stdout, stderr=stderr, wall_s=wall_s)

    def kill(self) -> None:
        """End process 1 of the jail, and with it everything in the jail."""
        try:
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            else:
                self.process.kill()
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """End whatever still runs, reap it, and close every descriptor. Calling this again has no effect."""
        if self.reply < 0:
            return
        self.kill()
        self.process.wait()
        if self.pidfd >= 0:  # bubblewrap may have ended first, with the thread that started it.
            ended = select.poll()
            ended.register(self.pidfd, select.POLLIN)
            ended.poll()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()
        for descriptor in (self.reply, self.pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self.reply = self.pidfd = -1

    def __enter__(self) -> "Jail":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
