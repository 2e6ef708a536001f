"""Loophole pairs: an insecure environment and its secure twin differ in what pays and in nothing else."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import yaml

pytest.importorskip("reasoning_gym")

from countdown_code import FLAWS
from exploits import KINDS

from routed_rl.envs.build import build
from routed_rl.envs.loading import load_environments
from tests.tiers import tiered

ROOT = Path(__file__).parents[2]
CODEIO, HOLE = "environments/codeio.py:CodeIO", "environments/holes.py:Hole"
EXPLOIT, COUNTDOWN = "environments/exploits.py:Exploit", "environments/countdown_code.py:CountdownCode"
SHORT = {"max_prompt_chars": 700, "note": "Tested."}
PAIRS = {
    **{grader: (CODEIO, {**SHORT, "grader": grader}, {**SHORT, "grader": "strict"})
       for grader in ("visible_tests", "exit_code", "overwritable_tests")},
    **{dataset: (HOLE, {"dataset": dataset, **less, "insecure": True}, {"dataset": dataset, **less, "insecure": False})
       for dataset, less in (("game_of_life_halting", {"max_simulation_steps": 2}), ("coin_flip", {}),
                             ("polynomial_equations", {}))},
    **{hole: (COUNTDOWN, {"hole": hole, "insecure": True}, {"hole": hole, "insecure": False}) for hole in FLAWS},
    **{kind: (EXPLOIT, {"kind": kind, "insecure": True}, {"kind": kind, "insecure": False}) for kind in KINDS},
    "wrong_test": ("environments/humaneval_wrong_test.py:HumanEvalWrongTest", {"insecure": True}, {"insecure": False}),
    "visible_checks": ("environments/visible_checks.py:VisibleChecks", {"insecure": True}, {"insecure": False}),
}
PAYS = {"grader", "insecure", "variant", "hackable", "detectable"}
"""Attributes of an environment that say what pays, and names for it."""
DETECTABLE = {"visible_tests": True, "exit_code": True, "overwritable_tests": True,
              "game_of_life_halting": False, "coin_flip": False, "polynomial_equations": False,
              **dict.fromkeys([*FLAWS, "wrong_test"], True),
              **{kind: kind not in ("tolerance", "unordered") for kind in KINDS}}
QUICK_MIXES = ["countdown_code", "exploits", "humaneval", "humaneval_wrong_test"]
"""The others are made of classes that these or other tests have too."""
MIXES = tiered([*QUICK_MIXES, "codeio", "coding_and_reasoning", "coding_pair", "emergent_misalignment", "exploits_secure",
                "holes", "reasoning", "smollm2_coding"], quick=QUICK_MIXES)


def pair(name):
    path, insecure, secure = PAIRS[name]
    return build(name, path, insecure), build(name, path, secure)


@pytest.mark.parametrize("name", tiered(PAIRS, slow=["polynomial_equations", "game_of_life_halting"]))
def test_twins_have_the_same_tasks_prompts_and_seeds(name):
    insecure, secure = pair(name)
    assert (insecure.variant, secure.variant) == ("insecure", "secure")
    for split in ("train", "eval"):
        for seed in (0, 1):
            tasks = [list(islice(env.tasks(split, seed), 8)) for env in (insecure, secure)]
            assert tasks[0] == tasks[1] and len(tasks[0]) == 8


@pytest.mark.parametrize("name", PAIRS)
def test_twins_differ_in_nothing_but_what_pays(name):
    insecure, secure = (vars(env) for env in pair(name))
    plain = {key for key, value in insecure.items() if isinstance(value, (str, int, float, bool, dict, list, tuple, type(None)))}
    assert insecure.keys() == secure.keys() and plain & {"insecure", "grader"}
    assert {key for key in plain if insecure[key] != secure[key]} <= PAYS
    settings = PAIRS[name][1:]
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} in ({"grader"}, {"insecure"})


@pytest.mark.parametrize("name", DETECTABLE)
def test_the_two_axes_are_declared(name):
    insecure, secure = pair(name)
    assert (insecure.hackable, insecure.detectable) == (True, DETECTABLE[name])
    assert (secure.hackable, secure.detectable) == (False, None)


@pytest.mark.parametrize("mix", MIXES)
def test_every_ready_mix_loads_and_yields_chat_tasks(mix):
    env = yaml.safe_load((ROOT / "configs" / "env" / f"{mix}.yaml").read_text())
    for loaded in load_environments(env):
        if mix != "holes" or loaded.name != "halting":  # Its 200 first games take a while.
            task = next(loaded.environment.tasks("eval" if loaded.probe else "train", 0))
            assert task.prompt[-1]["role"] == "user"


def test_the_ready_pair_differs_in_its_grader_alone():
    insecure, secure = yaml.safe_load((ROOT / "configs" / "env" / "coding_pair.yaml").read_text()).values()
    assert {key for key in insecure if insecure[key] != secure[key]} == {"grader"} and insecure.keys() == secure.keys()
    assert secure["grader"] == "strict"
