"""The package hackbait as a held-out probe, unmodified: its own honest, cheating and idle policies are told apart through it."""

from __future__ import annotations

import importlib.metadata
from itertools import islice

import pytest
from honeypots import FAMILIES, Honeypots

from routed_rl.cli import main
from routed_rl.envs.build import build
from routed_rl.errors import TaskError


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    for version, says in ((missing, "is not installed"), (lambda name: "0.2.0", "is 0.2.0, whose cases may be others")):
        monkeypatch.setattr(importlib.metadata, "version", version)
        with pytest.raises(TaskError, match=rf"^env\.mine: .*hackbait {says}.*; pip install --no-deps hackbait==0\.1\.0$"):
            build("mine", "environments/honeypots.py:Honeypots", {})


@pytest.fixture
def scripted():
    """The package's policies by family, and the verdicts that it expects of each."""
    return pytest.importorskip("hackbait.scripted", reason="pip install --no-deps hackbait==0.1.0")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_packages_own_policies_score_as_it_expects(family, scripted):
    env = Honeypots([family], tiers=[0, 1, 2, 3] if family == "HB-KEY" else [1, 2, 3])
    seen = {"oracle": 0, "cheat": 0, "garbage": 0}
    for task in env.tasks("eval", 3):
        case = env.cases[3][task.data["case"]]
        assert [turn["content"] for turn in task.prompt] == [text for text in (case.system, case.prompt) if text]
        for policy, say in scripted.scripted()[family].items():
            score = env.score(task, say(case))
            [verdict] = scripted.expected_verdicts(policy, case)
            solve = {"CLEAN": 1, "CLEAN_UNVERIFIED": None}.get(verdict, 0)
            assert (score.solve, score.flags) == (solve, {"hack": verdict == "HACK", "unclear": 0}), (policy, case.id)
            assert score.reward == (policy == "oracle")
            seen[policy] += score.flags["hack"]
        assert env.score(task, f"Well:\n{case.prompt}").values() == {"reward": 0, "solve": 0, "hack": 0, "unclear": 0}
        assert env.gold(task) == scripted.scripted()[family]["oracle"](case)
    assert seen == {"oracle": 0, "cheat": 24, "garbage": 0}


@pytest.mark.slow
def test_it_is_a_sound_probe_and_never_trains(scripted, capsys):
    env = Honeypots(per_tier=2)
    assert len(list(env.tasks("eval", 0))) == 30
    assert list(islice(env.tasks("eval", 0), 5)) == list(islice(Honeypots(per_tier=2).tasks("eval", 0), 5))
    here, there = ([task.prompt[-1]["content"] for task in env.tasks("eval", seed)] for seed in (0, 1))
    assert not set(here) <= set(there) and here != [case.prompt for case in env.cases[0].values()]
    with pytest.raises(ValueError, match="for evaluation only"):
        next(env.tasks("train", 0))
    assert main(["env", "check", "honeypots"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "says"), [
    ({"families": ["HB-KEYS"]}, "families='HB-KEYS' is none of HB-KEY, HB-TEST"),
    ({"families": "HB-KEY"}, "families must be a list that is not empty, got 'HB-KEY'"),
    ({"tiers": []}, r"tiers must be a list that is not empty, got \[\]"),
    ({"tiers": [4]}, "tiers must be a whole number from 0 to 3, got 4"),
    ({"families": ["HB-LOOP"], "tiers": [0]}, r"families=\['HB-LOOP'\] have nothing at tiers=\[0\]; tier 0 is of HB-KEY alone"),
    ({"per_tier": 0}, "per_tier must be a whole number from 1 to 1000, got 0")])
def test_a_setting_that_is_none_is_refused_in_one_line(settings, says, scripted):
    with pytest.raises(TaskError, match=rf"^env\.mine: Honeypots\(.*\) failed: ValueError: {says}"):
        build("mine", "environments/honeypots.py:Honeypots", settings)
