"""Programs that take more than they were given: the naive runner lets them (as far as the test's own cap), the sandbox
ends each within its limit, and nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from routed_rl.sandbox import Limits
from tests.sandbox.naive import end_group, naive_run
from tests.sandbox.processes import of_jails

LATE_S = 3.0
"""Seconds past a limit within which a program must be gone, on a busy machine."""


def run(sandbox, program: str, limits: Limits):
    """The outcome, having checked that the jail ended in time and left no process."""
    outcome = sandbox.run(["python", "a.py"], {"a.py": program}, limits=limits)
    assert outcome.wall_s < limits.wall_s + LATE_S
    assert of_jails() == []
    return outcome


FORKS = """
import os, time
made = 0
for _ in range(60):
    try:
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
        made += 1
    except OSError:
        break
print(made)
"""


@pytest.mark.slow
def test_attack_fork_bomb(sandbox, tmp_path):
    assert int(naive_run(FORKS, tmp_path).stdout) == 60
    assert int(run(sandbox, FORKS, Limits(processes=16)).stdout) == 15


def test_attack_fork_bomb_that_does_not_stop(sandbox, tmp_path):
    """Every process forks, without an end; the naive one under a generation limit of the test's own."""
    bomb = "import os\nfor _ in range({}):\n    try: os.fork()\n    except OSError: pass\nos.write(1, b'.')\n"
    assert len(naive_run(bomb.format(6), tmp_path).stdout) == 64
    outcome = run(sandbox, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", Limits(wall_s=1, processes=16))
    assert outcome.reason == "timeout"


def test_attack_thread_bomb(sandbox, tmp_path):
    program = """
import threading, time
made = 0
try:
    for _ in range(60): threading.Thread(target=time.sleep, args=(1,), daemon=True).start(); made += 1
except RuntimeError: pass
print(made)"""
    assert int(naive_run(program, tmp_path).stdout) == 60
    assert int(run(sandbox, program, Limits(processes=16)).stdout) < 16


def test_attack_memory_bomb(sandbox, tmp_path):
    program = "kept = []\nfor _ in range({}): kept.append(bytearray(16 << 20))\nprint('got')"
    assert naive_run(program.format(12), tmp_path).stdout == b"got\n"
    outcome = run(sandbox, program.format(12), Limits(memory_mb=96))
    assert outcome.stdout == b"" and b"MemoryError" in outcome.stderr


def test_attack_memory_bomb_of_many_processes(sandbox, tmp_path):
    """Each stays below the cap of one process, together they do not."""
    program = """
import os, time
children = []
for _ in range(5):
    if (child := os.fork()) == 0:
        kept = bytearray(os.urandom(1) * (48 << 20))
        time.sleep(1)
        os._exit(0)
    children.append(child)
if all(os.waitpid(child, 0)[1] == 0 for child in children): print("got")"""
    assert naive_run(program, tmp_path).stdout == b"got\n"
    outcome = run(sandbox, program, Limits(memory_mb=128))
    assert outcome.reason == "memory" and outcome.stdout == b""


def test_attack_memory_outside_the_heap(sandbox, tmp_path):
    """Files in memory count for no process."""
    program = "import os\nfile = os.memfd_create('x')\nfor _ in range(80): os.write(file, bytes(1 << 20))\nprint('got')"
    assert naive_run(program, tmp_path).stdout == b"got\n"
    assert run(sandbox, program, Limits(memory_mb=64)).stdout == b""


def test_attack_endless_loop(sandbox, tmp_path):
    program = "while True: pass"
    with pytest.raises(subprocess.TimeoutExpired):
        naive_run(program, tmp_path, timeout=1.0)
    outcome = run(sandbox, program, Limits(wall_s=1.0))
    assert outcome.reason == "timeout" and outcome.exit_code is None and not outcome.ok


@pytest.mark.slow
def test_attack_cpu_of_a_patient_loop(sandbox, tmp_path):
    """The limit on CPU time ends a loop whose wall time would be allowed."""
    program = """
import signal, time
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
while time.process_time() < {}: pass
print('got')"""
    assert naive_run(program.format(2.5), tmp_path).stdout == b"got\n"
    outcome = run(sandbox, program.format(50), Limits(cpu_s=1, wall_s=60))
    assert outcome.reason == "timeout" and outcome.stdout == b""


@pytest.mark.slow
def test_attack_sleep_past_the_limit(sandbox, tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        naive_run("import time; time.sleep(5)", tmp_path, timeout=1.0)
    assert run(sandbox, "import time; time.sleep(60)", Limits(wall_s=0.5)).reason == "timeout"


@pytest.mark.slow
def test_attack_ignored_signals(sandbox, tmp_path):
    program = """
import signal, time
for each in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(each, signal.SIG_IGN)
print("ready", flush=True)
end = time.time() + 20
while time.time() < end: pass"""
    (tmp_path / "a.py").write_text(program)
    naive = subprocess.Popen([sys.executable, "a.py"], cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True)
    assert naive.stdout and naive.stdout.readline() == b"ready\n"
    naive.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        naive.wait(1.0)
    naive.kill()
    naive.wait()
    naive.stdout.close()
    assert run(sandbox, program, Limits(wall_s=1.0)).reason == "timeout"


MEASURE = """
import subprocess, sys
from routed_rl.sandbox import Limits, find_sandbox
sandbox = find_sandbox()
def peak():  # Of this program: getrusage has the peak of whoever started it, too.
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
before = peak()
if sys.argv[1] == "naive":
    some = FLOOD.replace("while True", "for _ in range(1600)")
    size = len(subprocess.run([sys.executable, "-c", some], capture_output=True).stdout)
else:
    outcome = sandbox.run(["python", "a.py"], {"a.py": FLOOD}, limits=Limits(wall_s=20, cpu_s=20))
    assert outcome.reason == "output", outcome.reason
    size = max(len(outcome.stdout), len(outcome.stderr))
print(peak() - before, size)
"""


def test_attack_output_flood(sandbox):
    """MiB that the parent grows by, and the output it keeps."""
    flood = "import os\nwhile True: os.write(1, b'x' * 65536), os.write(2, b'y' * 10)"
    program = MEASURE.replace("FLOOD", repr(flood))
    root = str(Path(__file__).parents[2])

    def measure(which: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", program, which], cwd=root, text=True, check=True, capture_output=True)
        return [int(word) for word in done.stdout.split()]

    grown, _ = measure("naive")
    held, size = measure("sandbox")
    assert grown > 90
    assert held < 50 and size == Limits().output_bytes


def test_attack_output_flood_of_a_result_file(sandbox, tmp_path):
    program = "open('result.json', 'wb').write(bytes(8 << 20))"
    naive_run(program, tmp_path)
    assert len((tmp_path / "result.json").read_bytes()) == 8 << 20
    outcome = sandbox.run(["python", "a.py"], {"a.py": program}, collect=["result.json"])
    assert outcome.ok and dict(outcome.collected) == {}


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for descriptor in (0, 1, 2): os.close(descriptor)
        time.sleep(1)
        open("late", "w").close()
        time.sleep(20)
    os._exit(0)
os.wait()
"""


def test_attack_late_daemon(sandbox, tmp_path):
    """A process that goes on when the program has ended, to change what was written or to use the machine."""
    program = DAEMON.replace('if os.fork() == 0:\n        for', 'if (pid := os.fork()) == 0:\n        for').replace(
        "    os._exit(0)", "    open('pid', 'w').write(str(pid))\n    os._exit(0)")
    naive_run(program, tmp_path)
    time.sleep(2)
    daemon = int((tmp_path / "pid").read_text())
    os.kill(daemon, 0)
    assert (tmp_path / "late").exists()
    os.kill(daemon, signal.SIGKILL)
    outcome = run(sandbox, program, Limits(wall_s=15))
    assert outcome.ok and outcome.wall_s < 10


@pytest.mark.slow
def test_attack_output_after_the_end(sandbox, tmp_path):
    """A child that keeps the output open: a naive parent waits for it, the sandbox ends it with the program."""
    program = "import os, time\nif os.fork() == 0: time.sleep(30)"
    (tmp_path / "a.py").write_text(program)
    naive = subprocess.Popen([sys.executable, "a.py"], cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True)
    with pytest.raises(subprocess.TimeoutExpired):
        naive.communicate(timeout=2)
    end_group(naive.pid)
    naive.communicate()
    assert run(sandbox, program, Limits(wall_s=20)).ok
