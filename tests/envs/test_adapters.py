"""What holds for all adapters: importing one loads no heavy package, and rows are split without overlap."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from routed_rl.envs.adapters import common
from routed_rl.errors import ConfigError

FOLDER = Path(common.__file__).parent
HEAVY = ("torch", "transformers", "trl", "verifiers", "datasets", "requests", "httpx")


@pytest.mark.parametrize("module", sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__"))
def test_importing_an_adapter_loads_nothing_heavy(module):
    code = f"import sys, routed_rl.envs.adapters.{module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER.parents[2])
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("count", [5, 6, 50, 101])
def test_every_row_is_in_one_split_whatever_their_order(count):
    rows = [str(number) for number in range(count)]
    train, held = (common.of_split(split, rows, rows) for split in ("train", "eval"))
    assert sorted(train + held) == sorted(rows) and len(held) == count // 5
    assert set(common.of_split("eval", rows[::-1], rows[::-1])) == set(held)
    with pytest.raises(ValueError, match="train or eval"):
        common.of_split("test", rows, rows)


def test_few_rows_are_in_both_splits():
    assert common.of_split("train", ["a", "b"], ["a", "b"]) == common.of_split("eval", ["a", "b"], ["a", "b"]) == ["a", "b"]


def test_a_row_that_comes_several_times_is_in_one_split():
    rows = [str(number) for number in range(23)] * 2
    train, held = (common.of_split(split, rows, rows) for split in ("train", "eval"))
    assert sorted(train + held) == sorted(rows) and not set(train) & set(held) and len(held) == 8


def test_a_text_may_have_the_ends_of_lines_that_json_allows(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert common.read_rows("dataset", str(tmp_path / "rows.jsonl")) == [{"prompt": "a\u2028b\x85c"}]


@pytest.mark.parametrize(("text", "said"), [
    ("", " must have one JSON object a line"), ("[1]\n", ", line 1 is a list, not an object"), ("{\n", ", line 1 is not JSON"),
    (json.dumps({"a": 1}) + "\nx\n", ", line 2 is not JSON")])
def test_a_file_of_rows_that_is_none_is_refused_with_its_line(tmp_path, text, said):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=f"dataset=.*rows.jsonl{said}"):
        common.read_rows("dataset", str(tmp_path / "rows.jsonl"))
    with pytest.raises(ConfigError, match="no such file"):
        common.read_rows("dataset", str(tmp_path / "missing.jsonl"))
