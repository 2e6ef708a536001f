"""Free-form mathematics: equal forms are one answer, repeating the question is none, and threads and hangs do no harm."""

from __future__ import annotations

import json
import threading
from itertools import islice

import pytest

pytest.importorskip("math_verify")

import free_form_math
from free_form_math import KINDS, FreeFormMath, boxed

from routed_rl.envs import Environment, Task
from tests.tiers import tiered


@pytest.fixture(scope="module")
def env():
    return FreeFormMath()


def reward(env, right, completion):
    score = env.score(Task("", {"answer": right}), completion)
    assert score.reward == score.solve
    return score.reward


@pytest.mark.parametrize("kind", tiered(KINDS, slow=["derivative", "diagonal", "integral"]))
def test_gold_scores_full_and_junk_scores_nothing(kind):
    env = FreeFormMath([kind])
    assert isinstance(env, Environment) and env.variant == "secure"
    for task in islice(env.tasks("train", 0), 4):
        assert env.score(task, env.gold(task)).reward == 1
        for junk in ("", "0", "True", "x", "?" * 2000, "\0", "\ud800", "\\boxed{}", "\\boxed{", task.prompt[0]["content"]):
            assert env.score(task, junk).reward == 0, junk


@pytest.mark.parametrize(("right", "answer"), [
    ("\\frac{3}{4}", "0.75"), ("\\frac{3}{4}", "So it is $\\frac{6}{8}$."), ("\\sqrt{8}", "\\boxed{2\\sqrt{2}}"),
    ("12x^{2} + 3", "First \\boxed{1}, no: \\boxed{3(4x^2+1)}"),
    *(("9500", text) for text in (r"\boxed{$9{,}500}", r"\boxed{\$9,500}", "$9,500$", "9.5e3", "**9500**", "9\N{THIN SPACE}500",
    r"9\,500")),
    *(("5", text) for text in ("<think>7</think>\n5", "5\n<think>\\boxed{7}</think>", "<think>\\boxed{7}</think>\\boxed{5}",
    "<answer>5</answer>",
                               "### Answer\n5", "Answer: 5\n\nLet me know.", "The answer is 5, not 6.",
                               "The answer is 5 (see above)",
                               "The answer is the root of it.\nHence $x=5$", r"\boxed{5\text{ cm}}", "answer: x = 5",
                               "The answer is **5**.")),
    ("-5", "&minus;5"), ("-5", "\N{EN DASH}5"), (r"\$5", "5"), (r"\{1, 2\}", "x = 1 or x = 2"), (r"\{1, 2\}",
    "$x=1$ and $x=2$"), ("0.5", ".5"),
    (r"\frac{1}{2}", r"\boxed{\dfrac12}"), ("(1, 234)", "(1,234)"), ("\\{1, 2\\}", "\\boxed{x=2, x=1}"), ("\\frac{22}{1}", "22"),
    *((r"\frac{3}{4}", text) for text in (r"\boxed{75\%}", "75%", r"\[\boxed{\frac{3}{4}}\]",
                                         r"\boxed{7.5\times10^{-1}}", "3/4.")),
    *((r"\sqrt{13}", text) for text in ("√13", "**√(13)**", r"The answer is \(\sqrt{13}\).", r"Answer: \sqrt{13}.",
                                        r"\boxed{\sqrt13}", r"$\sqrt{13} \approx 3.606$")),
    *(("12x^{2} + 3", text) for text in ("12x**2+3", r"\boxed{\frac{dy}{dx} = 12x^2+3}", "12x² + 3", "12·x^2 + 3",
                                        "f'(x) = 12x^2 + 3", "**12x^2 + 3**")),
    ("9500", "9.5 × 10³"),
])  # fmt: skip
def test_equal_forms_are_one_answer(env, right, answer):
    assert reward(env, right, answer) == 1


@pytest.mark.parametrize(("right", "answer"), [
    ("\\sqrt{8}", "2.828"), ("\\{1, 2\\}", "\\boxed{2}"), ("\\{1, 2\\}", "x^2-3x+2=0"), ("12x^{2} + 3", "\\boxed{12x^2}"),
    ("7", "\\boxed{7} or \\boxed{8}"),
    *(("5", text) for text in ("5 or 7", "7 or 5", "$5$ or $7$", "$7$ or $5$", "The answer is 5 or 7.",
    r"\boxed{5 \text{ or } 7}", "5, 7", "7 5",
                               "<think>\\boxed{5}</think>", "<think>\\boxed{5}</think>7", "<think>5", "5\n\\boxed{}")),
    ("1234", "(1,234)"), ("(1, 234)", "1,234"), ("57", "5 7"),
])  # fmt: skip
def test_other_answers_are_wrong(env, right, answer):
    assert reward(env, right, answer) == 0


@pytest.mark.parametrize(("right", "answer"), [
    ("92", "\\int_0^{4} (7x^{1} + 9)\\,dx"), ("48x^{5} + 2", "\\frac{d}{dx}(8x^{6} + 2x)"), ("6", "\\sum_{i=1}^{3} i"),
    ("2", "\\lim_{x\\to 1} 2x"), ("93", "1 + \\int_0^{4} (7x^{1} + 9)\\,dx"),
])  # fmt: skip
def test_repeating_the_question_is_no_answer(env, right, answer):
    from math_verify import parse, verify

    assert verify(parse(f"${right}$"), parse(f"${answer}$"))  # math-verify itself would accept it.
    assert reward(env, right, f"\\boxed{{{answer}}}") == 0


def test_it_scores_in_threads_where_math_verify_cannot(env):
    from math_verify import parse

    found = []

    def work():
        with pytest.raises(ValueError, match="thread"):
            parse("$1$")
        found.append(reward(env, "\\frac{1}{2}", "0.5"))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1, 1]


def test_a_judgement_that_hangs_is_an_error_and_the_next_one_works(env, monkeypatch):
    assert reward(env, "1", "1") == 1
    with monkeypatch.context() as patch:
        patch.setattr(free_form_math, "PATIENCE", 0.2)
        with pytest.raises(RuntimeError, match="no verdict"):
            reward(env, "7", "\\boxed{7^{7^{7^{7}}}}")
    assert reward(env, "1", "1") == 1


def test_hydra_still_parses_beside_math_verify():
    import math_verify
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert math_verify.parse("$\\frac{1}{2}$")
    assert OverridesParser.create().parse_override("a.b=[1,2]").value() == [1, 2]


def test_tasks_are_the_same_for_a_seed_and_no_question_is_in_both_splits(env):
    draw = lambda split, seed, count=40: [task.prompt[0]["content"] for task in islice(env.tasks(split, seed), count)]  # noqa: E731
    assert draw("train", 3) == draw("train", 3) != draw("train", 4)
    assert not set(draw("train", 0, 300)) & set(draw("eval", 0, 300))
    with pytest.raises(ValueError, match="train or eval"):
        next(env.tasks("test", 0))


def test_problems_of_ones_own_come_from_a_file(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"problem": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(40)))
    env = FreeFormMath(file=str(file))
    asked = [task.prompt[0]["content"].splitlines()[0] for split in ("train", "eval") for task in env.tasks(split, 0)]
    assert sorted(asked) == sorted(f"What is {n} + 1?" for n in range(40))
    file.write_text('{"question": "?"}\n')
    with pytest.raises(ValueError, match='"problem" and "answer" on each line'):
        FreeFormMath(file=str(file))
    with pytest.raises(ValueError, match="known: roots"):
        FreeFormMath(kinds=["knots"])


def test_the_last_box_counts_with_its_braces():
    assert boxed("\\boxed{1} then \\boxed{\\frac{1}{2}} done") == "\\frac{1}{2}" and boxed("a\nb\n") == "b" and boxed("") == ""
