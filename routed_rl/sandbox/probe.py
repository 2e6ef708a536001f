"""Programs that try to break out of a jail, and that `routed-rl doctor` really runs. Each prints "safe" if it fails to break
out."""

import os
from dataclasses import replace

from routed_rl.errors import SandboxError
from routed_rl.sandbox.core import Sandbox
from routed_rl.sandbox.find import find_sandbox
from routed_rl.sandbox.limits import Limits

Row = tuple[str, bool, str]
SECRET = "ROUTED_RL_PROBE"
TRY = '''
def held(action):
    try:
        return not action()
    except OSError:
        return True
'''
PROGRAMS = {
    "secrets of the parent": "import os\n"
                             "NAME not in os.environ and held(lambda: NAME.encode() in open('/proc/1/environ', 'rb').read())",
    "network": "import socket\nheld(lambda: len(socket.if_nameindex()) > 1 or socket.socket().connect(('127.0.0.1', 9)) is None)",
    "files of the host": "import os\nnot any(map(os.path.exists, ['/etc/passwd', '/var', '/home', HERE]))",
    "writing outside": "all([held(lambda p=p: open(p + '/x', 'w') or True) for p in ['', '/usr', '/usr/lib', '/dev', '/etc']])",
    "new namespaces": "import ctypes\nctypes.CDLL(None).unshare(0x10000000) != 0",
    "uid of root": "import os\nheld(lambda: os.setuid(0) or True) and os.getuid() != 0",
}
FORKS = '''
import os, time
made = 0
while made < 64:
    try:
        if os.fork() == 0:
            time.sleep(60)
    except OSError:
        break
    made += 1
print(made)
'''
FLOOD = "while True: print('x' * 65536)"
HOG = "import os, time\nfor _ in range(4): os.fork()\nkept = bytearray(60 << 20)\ntime.sleep(1)"


def probe(name: str = "auto") -> list[Row]:
    """Run the programs in the sandbox `name` ("auto": the first that works). Each row names what a program tries, says whether
    the sandbox prevented it, and gives a detail; the first row says whether there is a sandbox."""
    try:
        sandbox = find_sandbox(name)
    except SandboxError as error:
        return [("sandbox", False, str(error))]
    rows: list[Row] = [("sandbox", True, sandbox.confines_by)]
    os.environ[SECRET] = "1"
    try:
        rows += [try_program(sandbox, what, program) for what, program in PROGRAMS.items()]
    finally:
        del os.environ[SECRET]
    limits = Limits(wall_s=2, processes=8)
    made = sandbox.run(["python", "a.py"], {"a.py": FORKS}, limits=limits).stdout.strip()
    held = made.isdigit() and int(made) < limits.processes
    rows.append(("fork bomb", held, f"{made.decode(errors='replace')} of 64 forks, cap {limits.processes}"))
    rows.append(ends(sandbox, "memory of many processes", HOG, "memory", replace(limits, memory_mb=128, processes=32)))
    rows.append(ends(sandbox, "output flood", FLOOD, "output", limits))
    rows.append(ends(sandbox, "endless loop", "while True: pass", "timeout", replace(limits, wall_s=0.5)))
    return rows


def try_program(sandbox: Sandbox, what: str, program: str) -> Row:
    *before, last = program.split("\n")
    lines = [TRY, f"NAME, HERE = {SECRET!r}, {os.getcwd()!r}", *before, f"print('safe' if {last} else 'not held')"]
    outcome = sandbox.run(["python", "a.py"], {"a.py": "\n".join(lines)})
    said = (outcome.stdout or outcome.stderr[-200:]).decode(errors="replace").strip()
    return what, outcome.ok and said == "safe", "held" if said == "safe" else said


def ends(sandbox: Sandbox, what: str, program: str, reason: str, limits: Limits) -> Row:
    outcome = sandbox.run(["python", "a.py"], {"a.py": program}, limits=limits)
    return what, outcome.reason == reason, f"ended by {outcome.reason} after {outcome.wall_s:.1f} s"
