"""What a request may be, and what comes back."""

from __future__ import annotations

import math

import pytest

from routed_rl.errors import ConfigError, RoutedRLError, SandboxError
from routed_rl.sandbox import Limits, Outcome
from routed_rl.sandbox.limits import check_name
from routed_rl.sandbox.reply import WORD, Report

WRONG = [{"wall_s": 0}, {"cpu_s": -1}, {"wall_s": math.nan}, {"wall_s": math.inf}, {"processes": 0}, {"processes": 1.5},
         {"memory_mb": True}, {"memory_mb": 8}, {"output_bytes": "1"}, {"disk_mb": 0}]


@pytest.mark.parametrize("wrong", WRONG)
def test_limits_that_make_no_sense_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        Limits(**wrong)


def test_whole_seconds_are_seconds():
    assert Limits(wall_s=1, cpu_s=2).wall_s == 1


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "a/../../b", "a//b", "./a", "a/", "a\0b", "x" * 300, "/"])
def test_names_that_lead_elsewhere_are_refused(sandbox, name):
    with pytest.raises(SandboxError, match="refused"):
        sandbox.run(["python", "a.py"], {"a.py": "", name: "x"})
    with pytest.raises(SandboxError, match="refused"):
        sandbox.run(["python", "a.py"], {"a.py": ""}, collect=[name])


def test_names_below_the_working_directory_are_kept():
    assert [check_name(name) for name in ("a", "a.b/c", "..a", "a b")] == ["a", "a.b/c", "..a", "a b"]


@pytest.mark.parametrize("argv", [[], "python a.py", ["python", "a\0b"], ["python", 1]])
def test_an_argv_that_is_no_list_of_words_is_refused(sandbox, argv):
    with pytest.raises(SandboxError, match="argv"):
        sandbox.run(argv)


def test_files_that_do_not_fit_are_refused(sandbox):
    with pytest.raises(SandboxError, match="disk_mb=1"):
        sandbox.run(["python", "a.py"], {"a.py": b"x" * (1 << 21)}, limits=Limits(disk_mb=1))


def test_a_program_gets_its_files_arguments_and_input_and_gives_its_results(sandbox):
    program = ("import sys, lib.b\nprint(sys.argv[1:], input(), lib.b.value)\nopen('out/r', 'wb').write(b'\\xff')\n"
               "print('e', file=sys.stderr)\nexit(7)")
    files = {"a.py": program, "lib/b.py": "value = 1", "out/x": b"\xfe"}
    outcome = sandbox.run(["python", "a.py", "$HOME", "* ; ls"], files, b"in\n", collect=["out/r", "out/x", "none"])
    assert (outcome.exit_code, outcome.reason, outcome.ok) == (7, "exited", False)
    assert outcome.stdout == b"['$HOME', '* ; ls'] in 1\n" and outcome.stderr == b"e\n"
    assert dict(outcome.collected) == {"out/r": b"\xff", "out/x": b"\xfe"}


def test_python_runs_a_file_and_everything_else_that_python_runs(sandbox):
    files = {"a.py": "print(__name__, __file__)"}
    assert sandbox.run(["python3", "a.py"], files).stdout == b"__main__ /tmp/a.py\n"
    assert sandbox.run(["python", "-c", "print(6 * 7)"], files).stdout == b"42\n"


@pytest.mark.parametrize("program", ["sh", "/bin/sh", "bwrap", "cat"])
def test_there_is_no_other_program(sandbox, program):
    assert sandbox.run([program, "-c", "echo"]).exit_code == 1


ENDS = [("raise ValueError('x')", 1), ("def", 1), ("import sys; sys.exit()", 0), ("raise SystemExit(300)", 44),
        ("import threading\nthreading.Thread(target=lambda: print(1)).start()", 0)]


@pytest.mark.parametrize(("program", "code"), ENDS)
def test_exit_codes_are_those_of_python(sandbox, program, code):
    outcome = sandbox.run(["python", "a.py"], {"a.py": program})
    assert outcome.exit_code == code and outcome.reason == "exited"


def test_a_signal_is_a_reason_and_no_exit_code(sandbox):
    outcome = sandbox.run(["python", "a.py"], {"a.py": "import os; os.abort()"})
    assert (outcome.reason, outcome.exit_code) == ("signal", None)


def test_output_is_cut_at_the_limit_exactly(sandbox):
    limits = Limits(output_bytes=1000)
    assert sandbox.run(["python", "a.py"], {"a.py": "print('x' * 999)"}, limits=limits).ok
    over = sandbox.run(["python", "a.py"], {"a.py": "print('x' * 1000)"}, limits=limits)
    assert over.reason == "output" and over.stdout == b"x" * 1000


def test_the_order_of_a_set_is_the_same_in_every_jail(sandbox):
    program = {"a.py": "print({str(each) for each in range(50)})"}
    assert len({sandbox.run(["python", "a.py"], program).stdout for _ in range(3)}) == 1


def number(value: int) -> bytes:
    return value.to_bytes(WORD, "big", signed=True)


def test_a_report_is_whole_or_none():
    frame = number(0) + number(1500) + number(2) + b"ab" + number(-1)
    whole = frame + number(len(frame))
    report = Report.parse(b"program's own output" + whole, ["a", "b"])
    assert report and (report.status, report.cpu_s, report.collected, report.size) == (0, 1.5, {"a": b"ab"}, len(whole))
    assert Report.parse(whole, ["a"]) is None and Report.parse(whole, ["a", "b", "c"]) is None
    for size in (-1, 0, 1 << 40, len(frame) - 1, len(frame) + 1):
        assert Report.parse(frame + number(size), ["a", "b"]) is None, size
    for cut in range(len(whole)):
        assert Report.parse(whole[:cut], ["a", "b"]) is None


def test_errors_are_the_users():
    assert issubclass(SandboxError, RoutedRLError) and not Outcome(None, "exited").ok
