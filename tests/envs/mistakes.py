"""The usual mistakes in a plug-in, each with the line that is to be named and words of the message. Not a test."""

from __future__ import annotations

from dataclasses import dataclass

HEAD = """\
from routed_rl.envs import Episode, Score, Task


class Mine:
"""
TASKS = """\
    def tasks(self, split, seed):
        for number in range(40):
            yield Task("say it", {"answer": str(number)})
"""
SCORE = """\
    def score(self, task, completion):
        return Score(float(completion == task.data["answer"]))
"""
CHATS = "    tasks = lambda self, split, seed: [Task([dict(role='user', content='a')])]\n"


@dataclass(frozen=True)
class Mistake:
    """`text` is the file; the line that is to be named holds `line`. `says` is in the message, and so is `remedy`."""

    text: str
    line: str
    says: str
    remedy: str


def tasks(body: str, line: str, says: str, remedy: str) -> Mistake:
    return Mistake(f"{HEAD}    def tasks(self, split, seed):\n        {body}\n{SCORE}", line, says, remedy)


def score(body: str, line: str, says: str, remedy: str) -> Mistake:
    return Mistake(f"{HEAD}{TASKS}    def score(self, task, completion):\n        {body}\n", line, says, remedy)


YIELD, DEF_TASKS, DEF_SCORE = "write yield Task(prompt, data)", "def tasks", "def score"
MISTAKES = {
    # --- tasks
    "no yield": tasks('[Task("a")]', DEF_TASKS, "tasks returned None", YIELD),
    "returns one task": tasks('return Task("a")', DEF_TASKS, "tasks returned Task", YIELD),
    "yields text": tasks('yield "a"', DEF_TASKS, "yielded str 'a', not a Task", YIELD),
    "yields a dict": tasks('yield {"prompt": "a"}', DEF_TASKS, "yielded dict {'prompt': 'a'}, not a Task", YIELD),
    "returns a list of dicts": tasks('return [{"prompt": "a"}]', DEF_TASKS, "yielded dict", YIELD),
    "returns a dict": tasks('return {"prompt": "a"}', DEF_TASKS, "tasks returned dict", YIELD),
    "yields nothing": tasks("yield from ()", DEF_TASKS, "task for split 'train'", "let tasks(split, seed) yield some"),
    "prompt is a number": tasks("yield Task(7)", "Task(7)", "the prompt of a task is 7", "give text, or chat messages"),
    "prompt is a list of texts": tasks('yield Task(["a"])', "Task([", "'a' in place of a message", "give text, or chat messages"),
    "message without role": tasks('yield Task([{"content": "a"}])', "Task([", "a message without a role", '"role": "user"'),
    "message without text": tasks('yield Task([{"role": "user"}])', "Task([", "whose content is no text", '"content": TEXT'),
    "data is text": tasks('yield Task("a", "7")', 'Task("a"', "the data of a task is '7'", "write Task(prompt, {"),
    "tasks raises": tasks('yield Task("a", {"b": 1 / 0})', "1 / 0", "failed to make tasks: ZeroDivisionError", "correct"),
    "tasks takes no seed": Mistake(f"{HEAD}{TASKS.replace(', seed', '')}{SCORE}", DEF_TASKS, "tasks(split) does not take",
                                   "write def tasks(self, split, seed)"),
    "async tasks": Mistake(f"{HEAD}{TASKS.replace('def', 'async def')}{SCORE}", DEF_TASKS, "tasks is async", "without async"),
    # --- score
    "returns a float": score("return 0.5", DEF_SCORE, "returned 0.5, which is no Score", "write return Score(0.5)"),
    "returns a bool": score("return completion == 'a'", DEF_SCORE, "returned False", "return Score(False)"),
    "returns nothing": score("Score(1.0)", DEF_SCORE, "returned None", "end each way through it with"),
    "returns a dict as score": score("return {'reward': 1.0}", DEF_SCORE, "returned {'reward': 1.0}", "return Score(reward)"),
    "reward is text": score("return Score('1')", "Score('1')", "reward must be a number, got '1'", "give a float"),
    "reward is nan": score("return Score(float('nan'))", DEF_SCORE, "reward is nan, which is not finite", "return numbers"),
    "wrong name of a flag": score("return Score(1.0, flags=['reward'])", DEF_SCORE, "a flag or a metric 'reward'", "rename it"),
    "key is not there": score("return Score(task.data['solution'])", "'solution'", "raised KeyError: 'solution'",
                              "the task's data has answer"),
    "misses a secret": score("import os; return Score(float(os.environ['JUDGE_API_KEY']))", "JUDGE_API_KEY", "raised KeyError",
                             "export JUDGE_API_KEY and set env.NAME.token_env=JUDGE_API_KEY"),
    "finds nothing": score("import re; return Score(float(re.search('x', completion).group()))", ".group()",
                           "raised AttributeError: 'NoneType'", "re.search gives None"),
    "reads the task itself": score("return Score(float(task['answer'] == completion))", "task['answer']", "not subscriptable",
                                   "read task.data[KEY]; the task's data has answer"),
    "reads an attribute of the task": score("return Score(float(task.answer == completion))", "task.answer",
                                            "no attribute 'answer'", "read task.data[KEY]; the task's data has answer"),
    "wrong field of a score": score("return Score(1.0, correct=True)", "correct=True", "unexpected keyword argument 'correct'",
                                    "Score takes reward, solve, flags, metrics and spans"),
    "score without a reward": score("return Score()", "Score()", "missing 1 required positional argument: 'reward'",
                                    "Score takes reward, solve"),
    "yields a score": score("yield Score(1.0)", DEF_SCORE, "which is no Score", "write return in place of yield"),
    "says nothing": score("assert completion == 'a'", "assert", "raised AssertionError; ", "return Score(0.0)"),
    "cannot read the completion": score("return Score(int(completion[99]))", "completion[99]", "raised IndexError",
                                        "return Score(0.0) for one that cannot be read"),
    "score takes no completion": Mistake(f"{HEAD}{TASKS}{SCORE.replace(', completion)', ')')}", DEF_SCORE,
                                         "score(task) does not take", "write def score(self, task, completion)"),
    "async score": Mistake(f"{HEAD}{TASKS}{SCORE.replace('def', 'async def')}", DEF_SCORE, "score is async", "without async"),
    "no score": Mistake(f"{HEAD}{TASKS}", "class Mine", "Mine needs the methods", "add what is missing"),
    # --- the class and its file
    "relative import": Mistake(f"from .helper import x\n{HEAD}{TASKS}{SCORE}", "from .helper", "attempted relative import",
                               "write import NAME without dots"),
    "contexts are text": Mistake(f"{HEAD}    contexts = 'be good'\n{TASKS}{SCORE}", "class Mine", "contexts is str 'be good'",
                                 'write contexts = {"encourage": TEXT'),
    "needs a setting": Mistake(f"{HEAD}    def __init__(self, low):\n        pass\n{TASKS}{SCORE}", "def __init__",
                               "missing a required argument: 'low'", "set env.Mine.low=VALUE"),
    "has an argument with a name of ours": Mistake(f"{HEAD}    def __init__(self, weight=2):\n        pass\n{TASKS}{SCORE}",
                                                   "def __init__", "Mine takes the argument weight, which cannot be set",
                                                   "rename the argument, or give a function as path that calls Mine"),
    "fails when it is made": Mistake(f"{HEAD}    def __init__(self):\n        open('no/words')\n{TASKS}{SCORE}", "open(",
                                     "Mine({}) failed: FileNotFoundError", "correct the code"),
    "wrong import": Mistake(f"import no_such_thing\n{HEAD}{TASKS}{SCORE}", "no_such_thing", "ModuleNotFoundError",
                            "pip install what has no_such_thing"),
    "wrong syntax": Mistake(f"{HEAD}{TASKS}{SCORE}        return (\n", "return (", "SyntaxError", "correct the code there"),
    "fails when it is imported": Mistake(f"open('no/words')\n{HEAD}{TASKS}{SCORE}", "open(", "cannot be loaded: FileNotFound",
                                         "correct the code there"),
    "attribute of a module": Mistake(f"import math\nmath.tau2\n{HEAD}{TASKS}{SCORE}", "tau2", "cannot be loaded: AttributeError",
                                     "correct the code there"),
    # --- episodes
    "episode returns nothing": Mistake(f"{HEAD}{CHATS}    def episode(self):\n        Episode()\n", "def episode",
                                       "episode returned None, which lacks the method start", "derives from Episode"),
    "episode returns a class": Mistake(f"{HEAD}{CHATS}    def episode(self):\n        return Episode\n", "def episode",
                                       "which is a class", "write return Episode()"),
    "episode returns itself": Mistake(f"{HEAD}{CHATS}    def episode(self):\n        return self\n", "def episode",
                                      "which lacks the method start", "derives from Episode"),
    "step returns a number": Mistake(
        f"{HEAD}{CHATS}    def episode(self):\n"
        "        return Talk()\n\n\nclass Talk(Episode):\n    def step(self, messages):\n        return 1.0\n",
        "def step", "step returned 1.0", "return a Score or messages"),
    "async step": Mistake(
        f"{HEAD}{CHATS}    def episode(self):\n"
        "        return Talk()\n\n\nclass Talk(Episode):\n    async def step(self, messages):\n        return Score(1.0)\n",
        "def step", "step is async", "without async"),
}
UNPICKLED = tasks('yield Task("a", {"answer": lambda: 7})', DEF_TASKS, "the data of a task cannot be pickled",
                  "give data that JSON can hold, or set env.NAME.isolate=false")
"""A mistake only where the environment has a process of its own."""
