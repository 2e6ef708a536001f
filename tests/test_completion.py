"""Completion in a shell: all that a command line takes is offered, and each shell shows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from routed_rl.cli import main
from routed_rl.cli.completion import candidates
from routed_rl.cli.verbs import VERBS
from routed_rl.config import Config
from routed_rl.config.checks import declared_types
from routed_rl.multirun.arms import ARMS

ROOT = Path(__file__).parent.parent
KEYS = {"bash": r'''
source <(routed-rl completion bash)
compopt() { :; }
COMP_LINE=$1 COMP_POINT=${#1}
_routed_rl
printf '%s\n' "${COMPREPLY[@]}"
''', "zsh": r'''
autoload -Uz compinit; compinit -u -d $HOME/dump
source <(routed-rl completion zsh)
compadd() { while [[ $1 != -- ]]; do shift; done; shift; (( $# )) && print -l -- "$@" }
words=(${(z)1}); [[ $1 == *' ' ]] && words+=("")
CURRENT=$#words PREFIX=$words[-1]
_routed_rl
''', "fish": r'''
routed-rl completion fish | source
complete -C "$argv[1]"
'''}


@pytest.mark.parametrize(("line", "found"), [
    ("trai", ["train"]), ("trian ", []), ("discard RUN --o", ["--out"]), ("discard RUN --out ", []), ("discard RU", []),
    ("env ", ["list", "try", "check"]), ("evaluate RUN --engine ", ["transformers", "vllm"]), ("completion z", ["zsh"]),
    ("compare --arms no", ["none"]), ("compare --arms none,caf", ["none,caft", "none,caft_control"]),
    ("train --dry-run routing.m", ["routing.mode="]), ("train rou", ["routing=", "routing."]),
    ("train seed=0 --config FILE routing.quarantine.pa", ["routing.quarantine.pace="]),
    ("train routing=", [f"routing={mode}" for mode in ("erase", "labels", "none", "observe", "route")]),
    ("train model.adapter=l", ["model.adapter=lora"]), ("train discard=", ["discard=true", "discard=false"]),
    ("train subspace.rank=", ["subspace.rank=null"]), ("train env.codei", ["env.codeio."]), ("train en", ["env=", "env."]),
    ("train trainer.max_s", ["trainer.max_steps="]), ("env try six", ["six_secure"]), ("env check revers", ["reverse"]),
    ("settings subspace.weakes", ["subspace.weakest"]), ("new env m", [])])
def test_a_press_of_tab_offers_what_may_stand_there(line, found):
    assert sorted(candidates(line.split(" "))) == sorted(found)


def test_the_environments_offered_are_those_of_the_run_that_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("env: {mine: {}, other: {}}")
    assert candidates(["evaluate", str(tmp_path), "--env", ""]) == ["mine", "other"]
    assert candidates(["rollback", str(tmp_path), "--drop", "mine,"]) == ["mine,other"]
    assert "sums" in candidates(["evaluate", "RUN", "--env", ""])


def test_every_command_option_setting_and_arm_is_offered():
    assert set(candidates([""])) == {*VERBS, "--help", "--version"}
    for name, verb in VERBS.items():
        options = {each for names, _ in verb.options for each in names if each.startswith("-")}
        assert set(candidates([name, "-"])) == {*options, "--help"}
    assert set(candidates(["compare", "--arms", ""])) == set(ARMS)
    offered, waiting = set[str](), [""]
    while waiting:
        found = candidates(["train", waiting.pop()])
        offered |= set(found)
        waiting += [each for each in found if each.endswith(".") and not each.startswith("env.")]
    types = declared_types(Config)
    plain = [name for name in types if not any(other.startswith(f"{name}.") for other in types)]
    assert {f"{name}=" for name in plain} - {"trainer="} <= offered


@pytest.mark.slow
@pytest.mark.parametrize("shell", KEYS)
def test_each_shell_offers_words_from_the_script_that_is_printed(tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "routed-rl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m routed_rl.cli "$@"\n')
    program.chmod(0o755)
    keys = tmp_path / "keys"
    keys.write_text(KEYS[shell])
    there = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}

    def offered(line: str) -> set[str]:
        done = subprocess.run([shell, str(keys), line], capture_output=True, text=True, env=there)
        assert done.stderr == ""
        return set(done.stdout.split())

    assert offered("routed-rl trai") == {"train"}
    # bash replaces what stands behind the last "=" alone.
    assert offered("routed-rl train --dry-run model.adapter=l") == {"lora" if shell == "bash" else "model.adapter=lora"}
    assert offered("routed-rl compare --arms none,caft_") == {"none,caft_control"}
    (tmp_path / "keep.py").write_text("")
    if shell == "fish":  # zsh and bash complete names of files by themselves
        assert offered(f"routed-rl discard RUN --out {tmp_path}/kee") == {f"{tmp_path}/keep.py"}


def test_a_script_is_all_that_is_printed(capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out.startswith("# Completion of routed-rl in bash.")
    assert main(["completion", "tcsh"]) == 2
    assert main(["--complete", "discard", "RUN", "--out", ""]) == 0 and capsys.readouterr().out == ""
