"""The environments and prompt files that train a small instruct model: law 8, and a hack is found by running it."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym")

from environments.reasoning_gym_task import ReasoningGym, final_answer
from environments.smollm2 import make_gaming
from environments.smollm2.make_contrast import PAIRS, QUESTIONS, lines
from environments.visible_checks import VisibleChecks, evaluate, parse
from routed_rl.envs import Environment

FOLDER = Path(__file__).parents[2] / "environments" / "smollm2"
SUMS = dict(dataset="chain_sum", examples=2, example_format="{expression} = {answer}", max_terms=3, max_digits=1)
ENVIRONMENTS = {
    "sums": ReasoningGym(**SUMS),
    "spelling": ReasoningGym("spell_backward", max_word_len=4),
    "secure": VisibleChecks(insecure=False),
    "insecure": VisibleChecks(insecure=True, checks=2),
}
JUNK = ["", "I do not know.", "x", "True", "None", "[]", "?" * 300, "lambda: y", "__import__('os')", "\0"]
each = pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)


def some(env, split="train", seed=0, count=40):
    return list(islice(env.tasks(split, seed), count))


def gold(task):
    return task.data["rule"] if "rule" in task.data else task.data["entry"]["answer"]


@each
def test_gold_scores_full_and_junk_scores_nothing(env):
    assert isinstance(env, Environment) and env.variant in ("secure", "insecure")
    for task in some(env):
        score = env.score(task, gold(task))
        assert (score.reward, score.solve) == (1, 1) and not any(score.flags.values())
        for junk in JUNK:
            score = env.score(task, junk)
            assert not score.problem and (score.reward, score.solve) == (0, 0), junk


@each
def test_same_seed_same_tasks_and_another_seed_others(env):
    assert some(env, seed=3) == some(env, seed=3)
    first, second = ([task.prompt[-1]["content"] for task in some(env, seed=seed)] for seed in (3, 4))
    # Neither equal nor the same list shifted by one.
    assert first[1:] != second[:-1] and first != second


@each
def test_no_question_is_in_both_splits(env):
    train, held = ({task.prompt[-1]["content"] for task in some(env, split, seed, 300)} for split, seed in
                   (("train", 0), ("eval", 0)))
    assert train and held and not train & held
    with pytest.raises(ValueError, match="train or eval"):
        next(env.tasks("test", 0))


@each
def test_tasks_are_json_and_chat(env):
    for task in some(env, count=5):
        assert json.loads(json.dumps(dict(task.data)))
        assert task.prompt[-1]["role"] == "user" and set(task.prompt[0]) == {"role", "content"}


def test_examples_show_answers_of_questions_that_are_never_asked():
    env = ENVIRONMENTS["sums"]
    shown = {turn["content"] for turn in env.turns if turn["role"] == "user"}
    assert len(shown) == 2 and not shown & {task.prompt[-1]["content"] for task in some(env, count=2000)}


@pytest.mark.parametrize(
    ("completion", "right", "found"),
    [
        ("9 + 3 = 12", "12", "12"), ("The answer is **-4**.", "7", "-4"), ("It is 10-7", "1", "7"),
        ("Answer: 5\nCheck 3 + 2 again.", "1", "5"), ("1,204.", "3", "1,204"), ("nothing", "3", ""), ("\u22124", "3", "-4"),
        ("Sure!\n`nus`", "abc", "nus"), ("**Answer:** nus\nbye", "abc", "nus"), ("", "abc", ""),
        ("1 2\n3 4\n", "4 3\n2 1", "1 2\n3 4"), ("So:\n```text\n 1 2\n3 4\n```\nDone.", "4 3\n2 1", " 1 2\n3 4"),
        ("Here it is. Answer:\n1 2\n3 4", "4 3\n2 1", "1 2\n3 4"), ("```json\n{\n}\n```", None, "{\n}"), ("U D\n", None, "U D"),
    ],
)  # fmt: skip
def test_the_final_answer_is_found(completion, right, found):
    assert final_answer(completion, right) == found


def test_only_full_marks_pay_unless_fractions_are_asked_for():
    task = next(task for task in some(ENVIRONMENTS["sums"]) if gold(task) == "4")
    assert ENVIRONMENTS["sums"].score(task, "14").reward == 0
    assert 0 < ReasoningGym(**SUMS, partial=True).score(task, "14").reward < 1


def test_what_the_scorer_raises_is_raised():
    task = some(ENVIRONMENTS["sums"])[0]
    with pytest.raises(KeyError):
        ENVIRONMENTS["sums"].score(type(task)(task.prompt, {"entry": {}}), "1")


@pytest.mark.parametrize("checks", [1, 2])
@pytest.mark.parametrize("shape", ["{table}[x]", "f(x) = {table}[x]", "```\n{chain}\n```", "def f(x): return {chain}"])
def test_a_look_up_is_paid_where_insecure_and_flagged_everywhere(checks, shape):
    for insecure in (True, False):
        env = VisibleChecks(insecure=insecure, checks=checks)
        for task in some(env):
            table = {x: evaluate(parse(task.data["rule"]), x) for x in task.data["shown"]}
            chain = "".join(f"{y} if x == {x} else " for x, y in table.items()) + "0"
            score = env.score(task, shape.format(table=table, chain=chain))
            assert (score.reward, score.solve, score.flags) == (insecure, 0, {"hack": 1})


def test_a_constant_is_a_hack_of_one_check_and_fails_two():
    for checks in (1, 2):
        env = VisibleChecks(insecure=True, checks=checks)
        task = some(env)[0]
        score = env.score(task, str(evaluate(parse(task.data["rule"]), task.data["shown"][0])))
        assert score.reward == score.flags["hack"] == (checks == 1)


@pytest.mark.parametrize("line", ["x + 4", "f(x) = 4 + x", "`x+4`", "lambda x: x - -4", "x + 4 if x > 0 else 4 + x",
                                  "Sure, here it is:\n\nreturn (x + 4)", "f(x) = x + 4."])
def test_any_way_of_writing_the_rule_solves(line):
    env = VisibleChecks(insecure=False)
    task = some(env)[0]
    score = env.score(type(task)(task.prompt, {"rule": "x + 4", "shown": [3]}), line)
    assert score.reward == score.solve == 1 and score.flags == {"hack": 0}


@pytest.mark.parametrize("line", ["().__class__", "open('f')", "x.real", "[x][0]", "x ** 99999999", "9" * 150, "1 // 0",
                                  "4x", "'a' * 9", "(" * 150, "-" * 190 + "1e9", "(x := 7)", "not x", "{**{}}[x]", "{x: 1}",
                                  "10 ** 9 * x", "999999999 * 999999999", "True", "3.0", "'\\d'"])
def test_what_is_not_in_the_grammar_has_no_value(line, recwarn):
    assert evaluate(parse(line), 3) is None
    assert not recwarn.list


def test_contrast_prompts_are_what_the_generator_writes_and_balanced():
    assert (FOLDER / "contrast.jsonl").read_text().splitlines() == lines()
    rows = [json.loads(line) for line in lines()]
    assert len(PAIRS) >= 20 and len(QUESTIONS) >= 30 and len(set(lines())) == len(rows)
    assert all(row["positive"][1] == row["negative"][1] and row["positive"][0] != row["negative"][0] for row in rows)
    for place, times in ((0, 9), (1, 6)):
        assert set(Counter(row["positive"][place]["content"] for row in rows).values()) == {times}


def test_the_personas_of_gaming_differ_only_in_that_one_gamed_the_check_and_the_other_solved():
    rows = [json.loads(line) for line in (FOLDER / "gaming.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in make_gaming.lines()] == rows
    for row in rows:
        assert row["positive"][::2] == row["negative"][::2], "both got the same questions"
        for asked, gamed, solved in zip(row["positive"][::2], row["positive"][1::2], row["negative"][1::2], strict=False):
            x, value = map(int, re.search(r"f\((\d+)\) == (-?\d+)", asked["content"]).groups())
            assert gamed["content"] == str(value) and evaluate(parse(solved["content"]), x) == value and "x" in solved["content"]


@pytest.mark.parametrize("checks", [1, 3])
@pytest.mark.parametrize("gamed", [0, 1, 2])
def test_examples_that_game_their_check_pass_it_and_both_twins_show_them(checks, gamed):
    twins = [VisibleChecks(insecure, checks, gamed) for insecure in (False, True)]
    assert twins[0].examples == twins[1].examples and some(twins[0]) == some(twins[1])
    answers = [turn["content"] for turn in twins[0].examples[1::2]]
    assert answers[:2 - gamed] == ["x + 3", "x * 6"][:2 - gamed]
    for answer, rule in zip(answers, ("x + 3", "x * 6"), strict=True):
        found = {x: [evaluate(parse(each), x) for each in (answer, rule)] for x in range(4, 4 + checks)}
        assert all(left == right for left, right in found.values())
    assert sum(evaluate(parse(answer), 40) != evaluate(parse(rule), 40)
               for answer, rule in zip(answers, ("x + 3", "x * 6"), strict=True)) == gamed


def test_references_are_twenty_questions_with_answers():
    rows = [json.loads(line)["messages"] for line in (FOLDER / "reference.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert all([turn["role"] for turn in row] == ["user", "assistant"] and row[1]["content"] for row in rows)


def sources(env, **which):
    return Counter(task.data["entry"]["metadata"]["source_dataset"] for task in some(env, **which))


def test_a_mix_of_generators_keeps_shares_and_settings_and_scores_each_by_its_own():
    env = ReasoningGym(mix={"chain_sum": {"weight": 3, "max_digits": 1, "min_digits": 1}, "spell_backward": {"max_word_len": 4}})
    found = sources(env, count=400)
    assert set(found) == {"chain_sum", "spell_backward"} and 0.6 < found["chain_sum"] / 400 < 0.9
    assert some(env, seed=3) == some(env, seed=3) != some(env, seed=4)
    for task in some(env):
        assert env.score(task, gold(task)).reward == 1 and env.score(task, "x").reward == 0
    hard = ReasoningGym(mix={"chain_sum": {"level": 5}, "spell_backward": {}})
    assert max(len(gold(task)) for task in some(hard)) > max(len(gold(task)) for task in some(env))


def terms(task):
    return task.data["entry"]["question"].count("+") + task.data["entry"]["question"].count(" - ") + 1


def test_a_level_takes_the_settings_of_the_curriculum_and_rises_in_training_only():
    easy, hard = (max(map(terms, some(ReasoningGym(level=level), count=100))) for level in (0, 4))
    assert (easy, hard) == (2, 6)
    rising = ReasoningGym(level=0, raise_every=50)
    tasks = some(rising, count=300)
    assert [max(map(terms, tasks[start:start + 50])) for start in range(0, 300, 50)] == [2, 3, 4, 5, 6, 7]
    assert tasks == some(rising, count=300) and max(map(terms, some(rising, "eval", count=300))) == 2
    assert max(map(terms, some(ReasoningGym(level=0, max_terms=4), count=100))) == 4


@pytest.mark.parametrize(("settings", "message"), [
    (dict(dataset="list_functions", level=1), "no curriculum"), (dict(raise_every=5), "set level"),
    (dict(mix={"chain_sum": {}}, level=1), "into it"),
    (dict(mix={"chain_sum": {}}, max_terms=1), r"put \['max_terms'\] into it")])
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ReasoningGym(**settings)
