"""A program ends in a jail as it does under the plain interpreter: status, output, and the files it leaves."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENDINGS = {
    "end": "print('done')",
    "nothing": "import sys; sys.exit()",
    "number": "import sys; sys.exit(3)",
    "large number": "import sys; sys.exit(256 + 7)",
    "negative": "import sys; sys.exit(-1)",
    "true": "import sys; sys.exit(True)",
    "words": "import sys; sys.exit('no luck')",
    "list": "import sys; sys.exit([1, 2])",
    "built in": "exit(4)",
    "exception": "def f(): return 1 / 0\nf()",
    "grouped": "raise ExceptionGroup('many', [ValueError(1), TypeError(2)])",
    "own hook": "import sys\nsys.excepthook = lambda kind, *_: print('hook', kind.__name__)\n1 / 0",
    "syntax": "x = = 1",
    "encoding": "print('\\udcff')",
    "at exit": "import atexit\natexit.register(print, 'first')\natexit.register(print, 'last')\nprint('body')",
    "at exit fails": "import atexit\natexit.register(lambda: 1 / 0)\natexit.register(print, 'still')",
    "at exit of an error": "import atexit\natexit.register(print, 'still')\nraise ValueError('first')",
    "file not closed": "out = open('left.txt', 'w')\nout.write('kept')",
    "file of an error": "out = open('left.txt', 'w')\nout.write('kept')\n1 / 0",
    "destructor": "class Loud:\n    def __del__(self): print('gone')\nkept = Loud()",
    "thread": "import threading, time\ndef late():\n    time.sleep(.2)\n    print('late')\nthreading.Thread(target=late).start()",
    "daemon": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nprint('body')",
    "closed output": "import sys\nprint('before')\nsys.stdout.close()",
    "no output": "import sys\nsys.stdout = None",
    "hard": "import os\nprint('lost')\nos._exit(5)",
    "standard input": "print(input() + '!')",
    "main": "import os, sys\nprint(__name__, os.path.isabs(__file__), __spec__, sys.argv, sys.path[0] == os.getcwd())",
}  # fmt: skip


def by_interpreter(folder, text):
    (folder / "a.py").write_text(text)
    done = subprocess.run([sys.executable, "-s", "-B", "-X", "utf8", "a.py"], cwd=folder, input=b"given\n",
                          capture_output=True, timeout=30, env={})
    left = folder / "left.txt"
    return done.returncode, done.stdout, done.stderr, left.read_bytes() if left.exists() else None


@pytest.mark.parametrize("name", ENDINGS)
def test_a_program_ends_as_under_the_interpreter(sandbox, tmp_path, name):
    outcome = sandbox.run(["python", "a.py"], {"a.py": ENDINGS[name]}, stdin=b"given\n", collect=["left.txt"])
    status, stdout, stderr, left = by_interpreter(tmp_path, ENDINGS[name])
    if outcome.exit_code is None and status < 0:
        status = None  # Ended by a signal.
    assert (outcome.exit_code, outcome.stdout, outcome.collected.get("left.txt")) == (status, stdout, left)
    assert last_line(outcome.stderr) == last_line(stderr)


def last_line(text):
    return text.strip().rsplit(b"\n", 1)[-1]
