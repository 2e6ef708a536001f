"""What validates a coding problem: each condition refuses a row that breaks it alone, and a shipped record is what it makes."""

from __future__ import annotations

import pytest

pytest.importorskip("reasoning_gym")

from coding.build import choose, validate, write
from coding.problems import HELD_OUT, SHOWN, TESTED, digest, load_problems, package_rows

from routed_rl.sandbox import find_sandbox
from tests.tiers import tiered

SOUND = {"task_description": "Double it.", "input_output_spec": "n", "code_sample": "def main_solution(n):\n    return 2 * n",
         "input_generator": "def generate_inputs(rng):\n    return {'n': rng.randint(0, 10 ** 6)}"}
BROKEN = {
    "constant": ({"code_sample": "def main_solution(n):\n    return 1"}, "outputs are constant"),
    "random": ({"code_sample": "import random\ndef main_solution(n):\n    return random.random()"}, "refused by strict"),
    "order of a set": ({"code_sample": "def main_solution(n):\n    return list({f'{n}a', f'{n}b', f'{n}c', f'{n}d', f'{n}e'})"},
                       "order of a set"),
    "numpy": ({"code_sample": "import numpy\ndef main_solution(n):\n    return n"}, "standard library"),
    "tuple": ({"code_sample": "def main_solution(n):\n    return (n, n)"}, "too few"),
    "raises": ({"code_sample": "def main_solution(n):\n    return 1 / 0"}, "too few"),
    "slow": ({"code_sample": "def main_solution(n):\n    while True: pass"}, "too few"),
    "few inputs": ({"input_generator": "def generate_inputs(rng):\n    return {'n': rng.randint(0, 3)}"}, "too few"),
    "other name": ({"code_sample": "def solution(n):\n    return n"}, "no function"),
    "no syntax": ({"code_sample": "def main_solution(n:"}, "no function"),
    "reads": ({"code_sample": "if __name__ == '__main__':\n    input()\ndef main_solution(n):\n    return n"},
              "refused by exit_code"),
}


@pytest.fixture(scope="module")
def jails():
    return find_sandbox("auto")


def test_a_sound_row_is_kept_and_keeps_no_text_of_the_row(jails):
    record = validate(7, SOUND, jails)
    assert isinstance(record, dict) and record.keys() == {"row", "hash", "inputs", "outputs"}
    assert [2 * given["n"] for given in record["inputs"]] == record["outputs"]
    assert (record["row"], record["hash"]) == (7, digest(SOUND)) and record == validate(7, SOUND, jails)


@pytest.mark.parametrize("name", tiered(BROKEN, slow=["slow"]))
def test_an_unsound_row_is_refused_for_its_reason(name, jails):
    change, reason = BROKEN[name]
    assert reason in str(validate(0, SOUND | change, jails))


def test_shipped_records_are_what_validation_makes(jails):
    problems, rows = load_problems(), package_rows()
    for one in problems[::len(problems) // 4]:
        record = validate(one.row, rows[one.row], jails)
        assert isinstance(record, dict) and (record["inputs"], record["outputs"]) == (one.inputs, one.outputs)


def test_a_rare_output_is_held_out():
    outputs = [False] * 30 + [True]
    chosen = choose([{"n": place} for place in range(31)], outputs)
    assert len(set(chosen)) == len(chosen) == SHOWN + TESTED + HELD_OUT
    assert {outputs[place] for place in chosen[-HELD_OUT:]} == {True, False}
    assert choose([{"n": place} for place in range(31)], [False] * 31) == []


def test_the_same_records_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(iter([{"row": 1}, {"row": 2}]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
