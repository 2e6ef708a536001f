"""Programs that reach for what is outside: each gets it from the naive runner, none from the sandbox.

A program prints "got" where it reached what it wanted, whatever it takes.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from pathlib import Path

import pytest

from routed_rl.sandbox import Limits
from tests.sandbox.naive import naive_run

LIMITS = Limits(wall_s=10)


def both(sandbox, program: str, folder: Path) -> tuple[bool, bool]:
    """Whether the program reached it with the naive runner, and in the sandbox."""
    naive = naive_run(program, folder)
    outcome = sandbox.run(["python", "a.py"], {"a.py": program}, limits=LIMITS)
    assert outcome.reason == "exited", outcome
    return b"got" in naive.stdout, b"got" in outcome.stdout


@pytest.fixture
def secret(monkeypatch) -> str:
    monkeypatch.setenv("WANDB_API_KEY", value := secrets.token_hex(8))
    return value


def test_attack_secrets_in_the_environment(sandbox, tmp_path, secret):
    program = f"import os\nprint('got' if {secret!r} in os.environ.values() else os.environ)"
    assert both(sandbox, program, tmp_path) == (True, False)


def test_attack_secrets_in_the_environment_of_other_processes(sandbox, tmp_path, secret):
    program = """
import os
for pid in ["self", "1", str(os.getppid()), *map(str, range(2, 50))]:
    try:
        if b"WANDB_API_KEY" in open(f"/proc/{pid}/environ", "rb").read(): print("got")
    except OSError: pass"""
    assert both(sandbox, program, tmp_path) == (True, False)


def test_attack_files_of_the_host(sandbox, tmp_path):
    (tmp_path / "answers").write_text("42")
    for place in (str(tmp_path / "answers"), __file__, "/etc/passwd", pytest.__file__):
        program = f"try: print('got', len(open({place!r}).read()))\nexcept OSError as error: print(error)"
        assert both(sandbox, program, tmp_path) == (True, False), place


def test_attack_shared_tmp(sandbox, tmp_path):
    with tempfile.NamedTemporaryFile(prefix="routed-rl-test-") as other:
        name = os.path.basename(other.name)
        program = f"import os\nprint('got' if {name!r} in os.listdir({tempfile.gettempdir()!r}) else 'no')"
        assert both(sandbox, program, tmp_path) == (True, False)


def test_attack_write_outside(sandbox, tmp_path):
    place = tmp_path / "written"
    program = f"try: open({str(place)!r}, 'w').write('x'); print('got')\nexcept OSError as error: print(error)"
    assert naive_run(program, tmp_path).stdout == b"got\n" and place.exists()
    place.unlink()
    sandbox.run(["python", "a.py"], {"a.py": program}, limits=LIMITS)
    assert not place.exists()


def test_attack_change_the_library(sandbox, tmp_path):
    """What later programs would import; the naive one may, which is tried on a file beside it only."""
    program = """
import os, json
folder = os.path.dirname(json.__file__)
try:
    open(folder + "/planted.py", "w").close(); os.remove(folder + "/planted.py"); print("got")
except OSError: pass
for place in ["/", "/usr", "/usr/lib", "/etc", "/dev", "/lib64"]:
    try:
        os.mkdir(place + "/planted"); os.rmdir(place + "/planted"); print("got")
    except OSError: pass"""
    assert both(sandbox, program, tmp_path) == (True, False)


def test_attack_state_left_for_the_next_program(sandbox, tmp_path):
    program = "import os\nprint('got' if os.path.exists('json.py') else 'first')\nopen('json.py', 'w').close()"
    assert b"got" not in naive_run(program, tmp_path).stdout and b"got" in naive_run(program, tmp_path).stdout
    for _ in range(2):
        assert sandbox.run(["python", "a.py"], {"a.py": program}, limits=LIMITS).stdout == b"first\n"


def test_attack_network(sandbox, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"""
import socket
try: socket.create_connection({server.getsockname()!r}, 2); print("got")
except OSError as error: print(error)"""
        assert both(sandbox, program, tmp_path) == (True, False)


def test_attack_abstract_socket(sandbox, tmp_path):
    """A socket without a file, which no mount hides."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name := b"\0routed-rl-" + secrets.token_hex(4).encode())
        server.listen()
        program = f"""
import socket
try: socket.socket(socket.AF_UNIX).connect({name!r}); print("got")
except OSError as error: print(error)"""
        assert both(sandbox, program, tmp_path) == (True, False)


@pytest.mark.parametrize("call", ["unshare(0x10000000)", "unshare(0x10020000)", "syscall(56, 0x10000011, 0, 0, 0, 0)"])
def test_attack_nested_namespaces(sandbox, tmp_path, call):
    """A user namespace gives rights over mounts and network, and a large surface of the kernel."""
    program = f"import ctypes, os\nif ctypes.CDLL(None).{call} >= 0: os.write(1, b'got'); os._exit(0)"
    assert both(sandbox, program, tmp_path) == (True, False)


def test_attack_signal_to_the_parent(sandbox, tmp_path):
    program = f"import os\ntry: os.kill({os.getpid()}, 0); print('got')\nexcept OSError as error: print(error)"
    assert both(sandbox, program, tmp_path) == (True, False)


def test_attack_on_the_process_that_reports(sandbox, tmp_path):
    """The naive supervisor dies of its child's signal; process 1 of a jail does not notice."""
    supervisor = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {!r}])\nprint('survived')"
    shoot = "import os\nparent = os.getppid()\nfor each in (15, 19, 2, 9): os.kill(parent, each)"
    assert b"survived" not in naive_run(supervisor.format(shoot), tmp_path).stdout
    outcome = sandbox.run(["python", "a.py"], {"a.py": shoot + "\nprint('survived')"}, limits=LIMITS)
    assert outcome.ok and outcome.stdout == b"survived\n"


def test_attack_memory_of_the_process_that_reports(sandbox, tmp_path):
    program = """
import ctypes, os
# pidfd_open, pidfd_getfd of its standard output, ptrace.
libc = ctypes.CDLL(None, use_errno=True)
pidfd = libc.syscall(434, os.getppid(), 0)
if libc.syscall(438, pidfd, 1, 0) >= 0: print("got")
if libc.ptrace(SEIZE := 0x4206, os.getppid(), 0, 0) == 0: print("got")"""
    assert both(sandbox, program, tmp_path) == (True, False)


def test_attack_result_that_is_a_link(sandbox, tmp_path):
    """A naive parent follows the link with its own rights."""
    (tmp_path / "private").write_text("secret")
    (tmp_path / "box").mkdir()
    link = str(tmp_path / "private")
    program = f"import os\nos.symlink({link!r}, 'result.json')\nos.symlink('a.py', 'other')\nos.mkfifo('pipe')"
    naive_run(program, tmp_path / "box")
    assert (tmp_path / "box" / "result.json").read_text() == "secret"
    outcome = sandbox.run(["python", "a.py"], {"a.py": program}, limits=LIMITS, collect=["result.json", "other", "pipe"])
    assert outcome.ok and dict(outcome.collected) == {}


def test_attack_more_disk_than_given(sandbox, tmp_path):
    program = """
try:
    for number in range(30):
        with open(f"big{number}", "wb") as file: file.write(bytes(1 << 20))
    print("got")
except OSError as error: print(error)"""
    assert naive_run(program, tmp_path).stdout == b"got\n"
    outcome = sandbox.run(["python", "a.py"], {"a.py": program}, limits=Limits(disk_mb=8, wall_s=10))
    assert b"No space left" in outcome.stdout


def test_attack_rights_of_root(sandbox, tmp_path):
    """The naive program has whatever rights its parent has; here each is compared with the parent's own."""
    program = f"""
import os
try: os.setgroups([]) if os.getuid() == 0 else None; print("got" if os.getuid() == {os.getuid()} else os.getuid())
except OSError as error: print(error)
try: os.setuid(0); print("got")
except OSError as error: print(error)"""
    assert both(sandbox, program, tmp_path)[0]
    outcome = sandbox.run(["python", "a.py"], {"a.py": program.replace(f"== {os.getuid()} ", "== 0 ")}, limits=LIMITS)
    assert b"got" not in outcome.stdout


LIBRARY = "import ctypes, fcntl, os\nlibc, file = ctypes.CDLL(None, use_errno=True), open(os.__file__, 'rb')\n"
TOUCHES = {
    "a lock that others see": "fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)",
    "a record lock that others see": "fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)",
    "an open file's lock": "fcntl.fcntl(file, 37, bytes(32))",
    "a lease": "fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "a watch on a file": "notify = libc.inotify_init1(0)\nassert libc.inotify_add_watch(notify, os.__file__.encode(), 32) >= 0",
    "a watch on a folder": "fcntl.fcntl(os.open(os.path.dirname(os.__file__), 0), fcntl.F_NOTIFY, 1)",
    "limits of its parent": "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
    "cores of its parent": "os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))",
    "priority of its parent": "os.setpriority(os.PRIO_PROCESS, os.getppid(), os.getpriority(os.PRIO_PROCESS, os.getppid()))",
    "priority of all of its user": "os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_USER, 0))",
    "sockets of the kernel": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
}
"""What reaches others than the program's own processes, each by a call that the plain process is allowed."""


@pytest.mark.parametrize("what", TOUCHES)
def test_attack_through_what_all_jails_share_or_the_process_that_reports(sandbox, tmp_path, what):
    body = TOUCHES[what].replace("\n", "\n    ")
    program = f"{LIBRARY}try:\n    {body}\n    print('got')\nexcept (OSError, AssertionError) as error: print(error)"
    assert both(sandbox, program, tmp_path) == (True, False)


def test_attack_the_hosts_mounts(sandbox, tmp_path):
    """Where the kernel has the call that lists them."""
    program = """
import ctypes, struct
request, found = ctypes.create_string_buffer(struct.pack("=IIQQ", 24, 0, 0xFFFFFFFFFFFFFFFF, 0)), (ctypes.c_uint64 * 64)()
made = ctypes.CDLL(None).syscall(458, request, found, 64, 0)
print("got" if made > 0 else made)"""
    naive, jailed = both(sandbox, program, tmp_path)
    assert not jailed and (naive or os.uname().release < "6.8")
