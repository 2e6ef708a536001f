"""While a command loads its first line counts the seconds on a terminal, and is one plain line elsewhere."""

from __future__ import annotations

import io
import os
import sys
import time

import pytest

from routed_rl.cli.waiting import waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_it_is_one_line(capsys):
    with waiting("loading"):
        print("done")
    assert capsys.readouterr().out == "loading\ndone\n"


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in a test itself: pytest puts streams of its own there when the test begins."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_the_first_output_ends_the_line_and_later_ones_stand_as_they_are(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with waiting("loading"):
        print("one")
        print("two", file=sys.stderr)
    assert terminal.getvalue() == "\rloading\none\ntwo\n" and sys.stdout is terminal and sys.stderr is terminal


def test_a_command_that_fails_before_it_says_anything_leaves_a_whole_line(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with pytest.raises(KeyError), waiting("loading"):
        raise KeyError
    assert terminal.getvalue() == "\rloading\n"


def test_where_a_password_may_be_asked_for_nothing_is_counted(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with waiting("reading", count=False):
        assert sys.stdout is terminal
    assert terminal.getvalue() == "reading\n"


@pytest.mark.slow
def test_seconds_are_counted_until_then_and_a_forked_process_does_not_end_the_line(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with waiting("loading"):
        time.sleep(2.5)
        if not (child := os.fork()):
            print("a child")
            os._exit(0)
        os.waitpid(child, 0)
        assert "\rloading (2 s)" in terminal.getvalue() and not terminal.getvalue().endswith("\n")
