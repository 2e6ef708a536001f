"""Where an answer stands and which number it is: forms of a right answer are read, hedging and reasoning are not."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("reasoning_gym")

from reading import number_of, spoken
from reasoning_gym_task import final_answer
from values_probe import chosen

NUMBERS = {
    "42": [r"\boxed{\text{42}}", r"\boxed{42\%}", "**42**", "The answer is: 42.", "42 apples", "$42$.", r"\[ 42 \]",
    r"Thus \(x = 42\).",
           "Answer:\n\n42", "**Answer:** 42", "ANSWER: 42", "answer: x = 42", r"\boxed{42\,\text{cm}}", r"\fbox{42}",
           r"\boxed 42",
           r"\boxed{\boxed{42}}", r"\boxed{\left(42\right)}", r"\boxed{41}, no: \boxed{42}", "42.0", "+42",
           "The answer is 42, not 43.",
           "The answer is the sum of both.\n39 + 3 = 42", "Answer: let me think.\n39 + 3 = 42", "The answer to 39 + 3 is 42.",
           "To find the answer: we add 39 and 3.\nSo 42", "The answer is in step 3 below.\nSo 42",
           "So the answer is 39 + 3 = 42.",
           "The answer is therefore 42. I checked it with 3 examples.", "### Final Answer\n\n42\n\nThere were 3 steps.",
           "Answer: 42 (39 + 3)", "Final answer: 42 apples and 3 pears", "39\n3\n42", "The answer is\n42",
           "Answer: 41\nAnswer: 42",
           "Let us find the answer. 39 + 3 = 42. Answer: 42.", "\r\nAnswer: 42\r\n", "My answer: \\$42", "Answer: &nbsp;42",
           "<think>It is 7.</think>\n42", "It is 7.\n</think>\n42", "<think>a 7</think>b 8<reasoning>9</reasoning>42",
           "42\n<think>7</think>",
           "<think>\\boxed{7}</think>\\boxed{42}", "<think>the answer is 7</think> The answer is 42", "[THINK]7[/THINK]42",
           "<answer>\n42\n</answer> in 3 steps", "<think>So the answer is 42", r"4.2 \times 10^1",
           r"\boxed{4.2\cdot10^{1}}", "42 %", "4.2 × 10¹"],
    "2884": [r"\boxed{2{,}884}", "$2,884$", "2,884", "2\N{THIN SPACE}884", r"2\,884", r"\boxed{2\ 884}", "2 884", "2'884",
    "2884."],
    "9500": [r"\boxed{$9{,}500}", r"\boxed{\$9,500}", "9.5e3", "9500.00"],
    "1234567": [r"\boxed{1,\!234,\!567}", "1_234_567", r"1.234567 \times 10^6", "1234567e0"],
    "2,884": ["2884", "2,884"],
    "-5": ["Answer: - 5", r"\boxed{- 5}", "x = - 5", "\N{MINUS SIGN}5", "&minus;5", "\N{EN DASH}5", "x = -5"],
    "0.5": [".5", r"\boxed{.5}", r"\frac12", r"\boxed{\dfrac{1}{2}}", "1/2", "0.50", "The answer is .5.", "50%",
            r"\boxed{50\%}", r"$5\times 10^{-1}$", "5 · 10⁻¹"],
    "-0.5": ["-.5", r"\boxed{-\frac{1}{2}}"],
    "0101": ["0101", "Answer: 0101"],
}
LINES = {
    "nus": ["<think>sun</think>nus", r"\boxed{nus}", r"\boxed{\text{nus}}", "The answer is nus.",
    "The answer is found by reversing.\nnus",
            "Answer: nus\nbye", '"nus"', "So I will write the answer: nus", "Answer:\nnus", "Reversed: nus",
            "<answer>nus</answer>", "`nus`"],
    "1/2": [r"\frac{1}{2}", r"$\frac12$", "1/2."], "True": ["true", "**True.**"], "a.": ["a.", "Answer: a."],
    "a b c": ["The answer is a b c.\nI hope this helps!", "**a b c**"], "(1, 2)": [r"\((1, 2)\)", "Answer: (1, 2)"],
    "1 2\n3 4": ["<think>x</think>1 2\n3 4", "The answer is found so:\n1 2\n3 4", "Answer:\n```\n1 2\n3 4\n```",
    "Here it is:\n\n1 2\n3 4\n",
                 "<answer>\n1 2\n3 4\n</answer>"],
}
WRONG = {
    "42": ["", "0", "<think>42</think>", "<think>42", "<think>\\boxed{42}</think>", "<think>42</think>\n43", "42 or 43",
    "43 or 42", "43, 42",
           "Answer: 42 or 43", "The answer is either 42 or 43.", r"\boxed{42 \text{ or } 43}", r"\boxed{43, 42}",
           "**43** or **42**", "43 42",
           "$43$ or $42$", "43 apples or 42", "Answer: 42\nAnswer: 43", r"\boxed{} 42", "42\n\\boxed{", r"\boxed{43} or 42",
           "\\boxed{42 43}"],
    "3": ["9/3", "Answer: 9 + 3"], "9": ["Answer: 9 + 3"],
    "5": ["50%", "Answer:\n5 or - 5"], "0.5": ["5%", "5"], "2": ["1/2"], "1234": ["1, 234", "(1, 234) or 4"], "0101": ["101"],
    "nus": ["<think>nus</think>", "nus or sun", "Nus", "<think>nus", ""], "1/2": ["2/4", "0.5"],
}  # fmt: skip
each = lambda table: [(right, said) for right in table for said in table[right]]  # noqa: E731


@pytest.mark.parametrize(("right", "completion"), each(NUMBERS) + each(LINES))
def test_a_right_answer_is_read_in_every_form(right, completion):
    assert final_answer(completion, right) == right


@pytest.mark.parametrize(("right", "completion"), each(WRONG))
def test_several_answers_reasoning_and_junk_are_not_read_as_the_right_one(right, completion):
    assert final_answer(completion, right) != right


@pytest.mark.parametrize("piece", ["<think>", "</think>", "answer ", "answer:\n", "\\boxed{", " \n", "the answer to ", "{", "1,",
    "or ", "* ", "\\frac1", "<answer>"])
def test_no_completion_takes_long_to_read(piece):
    begin = time.process_time()
    for right in ("1", "a", "a\nb"):
        final_answer(piece * 4000, right)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("run", [" ", "\t", "\n", "\N{THIN SPACE}", " \n"])
def test_no_run_of_blanks_takes_long_to_read(run):
    begin, blanks = time.process_time(), run * (15_000 // len(run))
    for text in (f"so{blanks}1", f"The answer is{blanks}1", blanks):
        assert chosen(text, {"A": "give", "B": "take"}) is None
        final_answer(text, None), number_of(spoken(text))
    assert time.process_time() - begin < 1


def test_what_only_looks_like_an_answer_never_raises():
    assert final_answer("&#" + "1" * 5000 + ";", "word") and number_of("<answer>" * 2000 + "3") == "3"


def test_reasoning_is_left_out_and_what_only_names_a_tag_is_not():
    assert spoken('a = "<think>"') == 'a = "<think>"' and spoken("<Think>x</THINK>y").strip() == "y"
    assert spoken("<think>I could use <think> here</think>y").strip() == "y"
