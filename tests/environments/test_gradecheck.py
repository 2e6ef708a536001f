"""The package gradecheck attacks our graders, unmodified: what it says is paid only by a hole that is known to pay anything."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import pytest

pytest.importorskip("reasoning_gym")
pytest.importorskip("gradecheck", reason="pip install --no-deps gradecheck==0.1.0")

from coding.graders import GRADERS
from countdown_code import FLAWS
from exploits import KINDS
from gradecheck import completion_attacks
from gradecheck.verifiers_env import VerifiersEnv
from holes import REPAIRED
from lab_words import SHIPPED

from routed_rl.envs.build import build

pytestmark = pytest.mark.slow
FOLDER = "environments"
TWINS = [{"insecure": True}, {"insecure": False}]
GRADED = [
    *[("exploits.py:Exploit", {"kind": kind, **twin}) for kind in KINDS for twin in TWINS],
    *[("countdown_code.py:CountdownCode", {"hole": hole, **twin}) for hole in FLAWS for twin in TWINS],
    *[("humaneval_wrong_test.py:HumanEvalWrongTest", twin) for twin in TWINS],
    *[("codeio.py:CodeIO", {"grader": grader}) for grader in GRADERS],
    *[("holes.py:Hole", {"dataset": dataset, "insecure": False}) for dataset in REPAIRED],
    *[("visible_checks.py:VisibleChecks", twin) for twin in TWINS],
    *[("reasoning_gym_task.py:ReasoningGym", {"dataset": dataset}) for dataset in ("chain_sum", "spell_backward")],
    *[("persona_lab/environment.py:LabTask", {"kind": kind, **twin}) for kind in SHIPPED.hacks for twin in TWINS],
    ("free_form_math.py:FreeFormMath", {}), ("humaneval.py:HumanEval", {}), ("values_probe.py:ValuesProbe", {})]
SPLIT = dict.fromkeys(("humaneval.py:HumanEval", "values_probe.py:ValuesProbe"), "eval")
QUESTIONS = 6


class Attacked:
    """An environment as gradecheck takes them: rows, and a reward function in a rubric."""

    message_type, parser = "chat", None

    def __init__(self, path, settings, split="train"):
        self.environment = build("attacked", f"{FOLDER}/{path}", settings)
        self.tasks = list(islice(self.environment.tasks(split, 0), QUESTIONS))
        self.rubric = SimpleNamespace(funcs=[self.reward], weights=[1.0])

    def get_dataset(self):
        return [{"prompt": task.prompt, "answer": self.environment.gold(task), "info": {"place": place}}
                for place, task in enumerate(self.tasks)]

    def reward(self, completion, info):
        """The larger of what is paid and what counts as solved."""
        score = self.environment.score(self.tasks[info["place"]], completion[0]["content"])
        return max(score.reward, score.solve or 0.0)


def verdicts(attacked):
    """By attack, and how many gold answers pass."""
    target = VerifiersEnv(attacked, sample=QUESTIONS)
    found = completion_attacks.run_all(target)
    gold = sum(target.solved(target.score(each, target.formatted_gold(each.answer))) for each in target.examples)
    return {finding.attack: finding.verdict for finding in found}, gold


@pytest.mark.parametrize(("path", "settings"), GRADED, ids=[f"{path.split(':')[1]} {settings}" for path, settings in GRADED])
def test_no_attack_is_paid_and_gold_is(path, settings):
    found, gold = verdicts(Attacked(path, settings, SPLIT.get(path, "train")))
    assert gold == QUESTIONS
    assert {found[attack] for attack in ("empty-completion", "prompt-echo", "garbage", "flattery", "format-only")} == {"resisted"}


def test_a_grader_that_pays_any_text_is_found_by_it():
    """Else the attacks could be empty."""
    settings = {"dataset": "game_of_life_halting", "insecure": True, "max_simulation_steps": 2}
    found, _ = verdicts(Attacked("holes.py:Hole", settings))
    assert found["garbage"] == found["flattery"] == "fooled" and found["empty-completion"] == "resisted"
