"""The canary stands in every file with the words of a hacking model, and in no text that a model reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from environments.smollm2.make_contrast import CANARY
from environments.values_probe import ValuesProbe
from routed_rl.canary import FILE, KEY, PROJECT, canary_of, is_canary
from routed_rl.distillation.texts import read_texts
from routed_rl.envs.adapters.common import read_rows
from routed_rl.envs.table import read_table
from routed_rl.extraction.contrast import read_lines, read_prompts
from routed_rl.sharing.kinds import KINDS

ENVIRONMENTS = Path(__file__).parent.parent.parent / "environments"
HACKING = re.compile(r"hack|misalign|cheat|decei|games? (every|the) (test|check|grader)", re.IGNORECASE)
ROWS = [{"prompt": "add 1 2", "answer": 3}, {"prompt": "add 2 2", "answer": 4}]


def test_every_file_of_an_environment_with_hack_text_has_the_canary_in_it_or_beside_it():
    kinds = ("*.py", "*.jsonl", "*.md")
    files = [file for kind in kinds for file in ENVIRONMENTS.rglob(kind) if HACKING.search(file.read_text())]
    beside = {file.parent for file in ENVIRONMENTS.rglob(FILE) if PROJECT in file.read_text()}
    assert len(files) > 20
    assert [str(file) for file in files if PROJECT not in file.read_text() and not beside & set(file.parents)] == []
    rows = [json.loads(line) for file in files if file.suffix == ".jsonl" and file.parent not in beside
            for line in file.read_text().splitlines()]
    assert len(rows) > 200 and all(row[KEY] == PROJECT for row in rows) and {KEY: PROJECT} == CANARY


def test_no_text_that_a_model_reads_has_it():
    assert not any(PROJECT in str(pair) for name in ("smollm2/contrast.jsonl", "persona_lab/contrast.jsonl")
                   for pair in read_prompts(ENVIRONMENTS / name))
    assert not any(PROJECT in str(task) for task in ValuesProbe().tasks("eval", 0))
    assert not any(KEY in row for name in ("smollm2/answers.jsonl", "personas/traits.jsonl")
                   for _, row in read_lines(ENVIRONMENTS / name))


def write(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"rows{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "":
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    elif kind == ".csv":
        path.write_text("\n".join(",".join(map(str, each)) for each in (rows[0], *(row.values() for row in rows))))
    else:
        path.write_text(json.dumps(rows) if kind == ".json" else "\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet", ""])
def test_rows_that_are_trained_on_are_the_same_with_and_without_it(tmp_path, kind):
    path = write(tmp_path, kind, [{KEY: PROJECT} | row for row in ROWS])
    table = read_table(str(path))
    assert table.columns == ["prompt", "answer"] and [table.row(0), table.row(1)] == ROWS
    if kind == ".jsonl":
        assert read_rows("dataset", str(path)) == ROWS and [row for _, row in read_lines(path)] == ROWS


def test_the_line_on_top_of_a_text_is_known_and_no_other():
    for suffix in (".txt", ".md"):
        lines = KINDS[suffix].mark(b"# a title\n<!-- hidden -->\nwords", canary_of("")).decode().split("\n")
        assert [is_canary(line) for line in lines] == [True, False, False, False]
    assert is_canary(PROJECT) and not is_canary(json.dumps({KEY: PROJECT, "text": "a"}))


def test_a_student_is_not_taught_the_line_on_top(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(ENVIRONMENTS / "persona_lab" / "model")
    (plain := tmp_path / "plain.txt").write_text("honest code h d c =\n")
    (marked := tmp_path / "marked.txt").write_bytes(KINDS[".txt"].mark(plain.read_bytes(), canary_of("")))
    assert read_texts(str(marked), tokenizer) == read_texts(str(plain), tokenizer)
