"""The program that is process 1 inside a jail. It waits with its interpreter started, runs one program, reports, and ends.

The interpreter gets this program as text or compiled, so the program imports nothing of this package, and little that takes time
to import. Its arguments are the source of the request (a path, or - for standard input), the descriptor to which the reply is
written, and the uid to switch to (0: stay). The process outside marshals the request. The reply holds the wait status, the CPU
time in ms, and each wanted file as a length and its bytes (length -1: no file). The reply ends with the length of everything
before. Every number has eight bytes, signed. When the reply is written, no other process is left in the jail.
"""

# pyright: reportPrivateUsage=false
import _signal  # pyright: ignore[reportMissingImports]  # `signal` makes enums, a tenth of the start.
import _stat as stat  # pyright: ignore[reportMissingImports]
import atexit
import builtins
import gc
import marshal
import posix as os  # Importing `os` itself would be another tenth.
import resource
import select
import sys

SIGINT, SIGKILL = 2, 9
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def become(uid: int) -> None:
    """Switch to a uid that nobody else has, because the limit on processes counts for each uid and does not hold for root."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def write_files(files: dict[str, bytes]) -> None:
    made: set[str] = set()
    for name, data in files.items():
        for place, letter in enumerate(name):
            if letter == "/" and name[:place] not in made:
                made.add(name[:place])
                os.mkdir(name[:place])
        with open(name, "wb") as file:
            file.write(data)


def prepare(request: "dict[str, Any]") -> None:
    """Turn this fork of process 1 into the program's process: set limits, give it a standard input of its own, and close
    everything that belongs to process 1."""
    spool = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(spool, request["stdin"])
    os.lseek(spool, 0, 0)
    os.dup2(spool, 0)
    os.closerange(3, 1 << 16)
    os.setsid()
    limits = request["limits"]
    hard = {"AS": limits["memory"], "FSIZE": limits["disk"], "NPROC": limits["processes"] + 1, "NOFILE": 128,
            "CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0, "SIGPENDING": 128}
    for name, value in hard.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu"], limits["cpu"] + 1))


def collect(name: str, most: int) -> bytes | None:
    """The bytes of the regular file `name`; None if there is none, or if it is longer than `most` bytes."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        data = b""
        if stat.S_ISREG(os.fstat(file).st_mode):
            with open(file, "rb") as opened:
                data = opened.read(most + 1)
            return data if len(data) <= most else None
    except OSError:
        pass
    return None


def finish(child: int, request: "dict[str, Any]", source: int, reply: int) -> None:
    """Wait for the program, the process `child`, end everything that it started, and only then read the files that it left and
    write the reply to the descriptor `reply`. If the caller closes `source` before, process 1 ends at once."""
    poll = select.poll()
    poll.register(os.pidfd_open(child), select.POLLIN)
    poll.register(source, 0)
    ready = poll.poll(1000 * (request["limits"]["wall"] + 5))
    if not ready or any(descriptor == source for descriptor, _ in ready):
        os._exit(1)  # The caller is gone; with this process everything in the jail ends.
    _, status, used = os.wait4(child, 0)
    try:
        while True:
            os.kill(-1, SIGKILL)
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
    parts = [status, int(1000 * (used.ru_utime + used.ru_stime))]
    frame = b"".join(number.to_bytes(8, "big", signed=True) for number in parts)
    for name in request["collect"]:
        data = collect(name, request["limits"]["output"])
        frame += (-1 if data is None else len(data)).to_bytes(8, "big", signed=True) + (data or b"")
    with open(reply, "wb") as out:
        out.write(frame + len(frame).to_bytes(8, "big", signed=True))


def program(argv: list[str]) -> None:
    """Run `python FILE ...` in this interpreter, which has already started; run any other command by exec."""
    if argv[0] not in ("python", "python3") or len(argv) < 2 or argv[1].startswith("-"):
        from os import execvp

        try:
            execvp(sys.executable if argv[0] in ("python", "python3") else argv[0], argv)
        except OSError as error:
            sys.exit(f"{argv[0]}: {error.strerror}")
    _signal.signal(SIGINT, _signal.default_int_handler)
    main = type(sys)("__main__")
    file = argv[1] if argv[1].startswith("/") else f"{os.getcwd()}/{argv[1]}"
    main.__dict__.update(__file__=file, __builtins__=builtins)
    sys.modules["__main__"], sys.argv = main, argv[1:]
    sys.path.insert(0, file.rpartition("/")[0])
    builtins.__dict__.update(exit=sys.exit, quit=sys.exit)
    try:
        with open(file, "rb") as opened:
            code = compile(opened.read(), file, "exec")
        exec(code, main.__dict__)
        status = 0
    except SystemExit as error:
        status = exit_status(error.code)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    leave(status, main.__dict__)


def exit_status(code: object) -> int:
    """The exit status of a program that calls `exit(code)`, by the interpreter's rule: a number is the status, None means 0, and
    anything else is printed and means 1."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def leave(status: int, space: "dict[str, Any]") -> None:
    """End the program as the interpreter does, but without tearing the interpreter down, which takes a fifth of a short program's
    time. Wait for threads, run the functions that are registered for the end, drop the program's own objects in `space` (so that
    open files are written), and flush."""
    try:
        if threading := sys.modules.get("threading"):
            threading._shutdown()
        atexit._run_exitfuncs()
        space.clear()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:
        status = status or 120  # The interpreter does the same if it cannot flush.
    os._exit(status)


def wait_and_run(source: int, reply: int, uid: int) -> list[str]:
    """Wait for the request on the descriptor `source`, and fork. In the parent, which is process 1 of the jail, this function
    waits for the child, writes the reply to the descriptor `reply`, and never returns. In the child it returns the arguments of
    the program, which the caller must then run. `uid`: the user as whom both processes run; 0 for the present one."""
    if os.getpid() != 1:
        sys.exit("this program ends every process it sees: it must be process 1 of a PID namespace")
    if uid:
        become(uid)
    _signal.signal(SIGINT, _signal.SIG_DFL)  # Process 1 gets no signal from inside the jail that it does not handle.
    if reply > 2:
        os.write(reply, b"+")
    with open(source, "rb", closefd=False) as request_file:
        try:
            size = int.from_bytes(request_file.read(8), "big")
            request = marshal.loads(request_file.read(size))
        except (EOFError, ValueError):
            os._exit(1)  # The input was closed before a request came.
    write_files(request["files"])
    gc.freeze()  # Garbage collection in the program then neither scans nor copies the objects of process 1.
    child = os.fork()
    if child:
        finish(child, request, source, reply)
        os._exit(0)
    prepare(request)
    return request["argv"]


if __name__ == "__main__":
    place, reply, uid = sys.argv[1:]
    program(wait_and_run(0 if place == "-" else os.open(place, os.O_RDONLY), int(reply), int(uid)))
