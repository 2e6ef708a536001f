"""Damaged folders, and what models and environments really produce: the report and a halt tell of them, never a traceback."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pandas as pd
import pytest

from routed_rl.artifacts import RunFolder
from routed_rl.cli import main
from routed_rl.monitor import Verdict
from routed_rl.pipeline.halting import describe_halt
from routed_rl.report.completions import readable_text as shown_text
from tests.report.folders import write, write_run
from tests.tiers import tiered


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_run(tmp_path / "run", steps=6, planned=60, environments=2, layers=2, completions=8)


def reported(folder: Path, capsys) -> tuple[str, str]:
    """The page's text, and what was said."""
    assert main(["report", str(folder)]) == 0, capsys.readouterr().err
    return unescape((folder / "report.html").read_text()), capsys.readouterr().out


def change_rows(folder: Path, change) -> None:
    """`change` gets each row of metrics.jsonl; what it returns is written."""
    rows = [change(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_results(folder: Path, change) -> None:
    """`change` gets each model's results."""
    for model in ("base", "policy", "deployed"):
        file = folder / f"evaluation-{model}.json"
        data = json.loads(file.read_text())
        change(model, data["results"])
        write(file, data)


def one_completion(folder: Path, **columns: str) -> None:
    """The only completion that was paid above its true score."""
    file = folder / "completions" / "step-000006-0.parquet"
    table = pd.read_parquet(file).iloc[1:2].assign(**columns)
    for other in (folder / "completions").iterdir():
        other.unlink()
    table.to_parquet(file)


TORN = {
    "a torn file of completions": lambda run: (run / "completions" / "step-000003-0.parquet").write_bytes(b"PAR1xxxx"),
    "an empty file of completions": lambda run: (run / "completions" / "step-000006-0.parquet").write_bytes(b""),
    "completions without a column": lambda run: pd.DataFrame({"step": [1]}).to_parquet(
        run / "completions" / "step-000001-0.parquet"),
    "torn flags": lambda run: one_completion(run, flags='{"a":'),
    "flags that are none": lambda run: one_completion(run, flags="[1]"),
    "bytes that are no text in the metrics": lambda run: append(run / "metrics.jsonl", b"\xff\xfe\n"),
    "a number for a row of metrics": lambda run: append(run / "metrics.jsonl", b'12\n{"step": "7"}\n[]\n'),
    "a halt without verdicts": lambda run: write(run / "HALTED.json", {"step": 6, "environment": "env0", "commands": []}),
    "an earlier halt that is torn": lambda run: earlier(run, {"step": 3}),
    "a verdict that is torn": lambda run: append(run / "verdicts.jsonl", b'{"step": 3}\n'),
    "null in an evaluation": lambda run: change_results(run, lambda _, results: results["env0"].update(hack=None)),
    "an evaluation of nothing": lambda run: write(run / "evaluation-policy.json", {"results": {"env0": None}}),
    "a list for an evaluation": lambda run: write(run / "evaluation-policy.json", []),
    "half a lineage": lambda run: write(run / "manifest.json", {"lineage": {"parent": "/x"}}),
    "settings without sections": lambda run: (run / "config.yaml").write_text("seed: 0\nrouting:\n"),
}


def append(file: Path, data: bytes) -> None:
    with open(file, "ab") as opened:
        opened.write(data)


def earlier(run: Path, record: dict) -> None:
    (run / "halts").mkdir()
    write(run / "halts" / f"step-{record['step']}.json", record)


@pytest.mark.parametrize("damage", tiered(TORN, quick=["a verdict that is torn", "half a lineage", "a torn file of completions"]))
def test_what_is_torn_counts_as_not_there(folder, capsys, damage):
    TORN[damage](folder)
    text, said = reported(folder, capsys)
    assert "This run finished its 6 steps" in text
    assert said.count("cannot be read") == ("of completions" in damage or "without a column" in damage), "in one line"


@pytest.mark.parametrize("config", ["", "a: [1", "\xff"], ids=["empty", "torn", "no text"])
def test_a_run_without_settings_is_refused_in_one_line(folder, capsys, config):
    (folder / "config.yaml").write_bytes(config.encode("latin-1"))
    assert main(["report", str(folder)]) == 2
    assert re.fullmatch(r".*config.yaml is empty or torn.*\n", capsys.readouterr().err)


def test_a_halt_is_recorded_whatever_became_of_the_completions(folder, capsys):
    """Else every resume would meet the same file again, and nothing would say who it was."""
    (folder / "completions" / "step-000003-0.parquet").write_bytes(b"PAR1xxxx")
    verdicts = [Verdict("shift", "env0", 6, value=0.7, limit=0.6, since=2, action="halt")]
    record = describe_halt(RunFolder(folder), verdicts, "hacker")
    assert sorted({row["step"] for row in record["completions"]}) == [2, 4, 5, 6]
    assert capsys.readouterr().out.count("step-000003-0.parquet") == 1
    for file in (folder / "completions").iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    assert describe_halt(RunFolder(folder), verdicts, "hacker") | {"completions": [], "completions_by": ""} == record | {
        "completions": [], "completions_by": ""}


@pytest.mark.parametrize("text", ["[]", "{}", '""', "null", "[" * 5000, '["a"]', '[{"role": "user"}]', "3"])
def test_a_completion_that_only_looks_like_messages_is_shown_as_it_stands(text):
    assert shown_text(text) == (text if len(text) < 5000 else f"{text[:3000]} … (2000 characters more)")


def test_messages_are_shown_by_who_speaks_and_half_a_character_is_no_end(folder, capsys):
    prompt = json.dumps([{"role": "user", "content": "half \ud800"}, {"role": "tool", "content": "4"}])
    one_completion(folder, prompt=prompt, completion="[" * 1100)
    assert "<dd><pre>user: half \\ud800\ntool: 4</pre></dd>" in reported(folder, capsys)[0]


def test_a_flag_that_is_named_only_when_it_happens_is_0_where_it_did_not(folder, capsys):
    def only_where_seen(model: str, results: dict) -> None:
        for means in results.values():
            del means["hack"]
        seen = {"base": ("env1", 0.1), "policy": ("env0", 0.8), "deployed": ("env1", 0.2)}[model]
        results[seen[0]]["cheat"] = seen[1]

    change_results(folder, only_where_seen)
    text = reported(folder, capsys)[0]
    assert "Training raised cheat in env0 from 0.00 [0.00, 0.30] to 0.80 [0.47, 0.95]. Without" in text
    assert "in the deployed model, it is 0.00 [0.00, 0.30]" in text


def test_completions_that_could_not_be_scored_are_told_wherever_there_are_some(folder, capsys):
    assert "scored" not in reported(folder, capsys)[0]
    change_rows(folder, lambda row: row | {"environment/env1/failures": row["step"] % 2})
    change_results(folder, lambda model, results: results["env0"].update(failures=4 * (model == "policy"), completions=9))
    text = " ".join(re.sub("<[^>]+>", " ", reported(folder, capsys)[0]).split())
    assert " 4 of 9 completions in env0 could not be scored (policy)." in text
    assert re.search(r"not scored env0 .* nothing \S+ \S+ \S+ 0 env1 .* nothing \S+ \S+ \S+ 3 probe", text), "in the story"
    assert "not scored, policy" in text and " 4.00 " in text, "in the table of the models"


@pytest.mark.slow
def test_names_with_dollars_are_names(folder, capsys):
    def dear(row: dict) -> dict:
        return {key.replace("env0", "a$x_{$").replace("/hack", "/$\\frac$"): value for key, value in row.items()}

    change_rows(folder, dear)
    change_results(folder, lambda _, results: results["env0"].update({"cost_$\\frac$": 0.5}))
    text = reported(folder, capsys)[0]
    assert "a$x_{$" in text and "cost_$\\frac$" in text


LAYER = "quarantine/layer/1/norm"


def without(area: str):
    return lambda row: {key: None if key.startswith(area) else value for key, value in row.items()}


NULLS = {
    "one layer in one row": (lambda row: row | {LAYER: None} if row["step"] == 3 else row, "Map of 2 layers by 6 steps"),
    "one layer in the first row": (lambda row: row | {LAYER: None} if row["step"] == 1 else row, "Map of 2 layers by 6 steps"),
    "all layers": (without("quarantine"), "The metrics of this run do not say what lies in which layer."),
    "every control": (without("control"), "Means over the run."),
}


@pytest.mark.parametrize("nulls", tiered(NULLS, quick=["one layer in one row"]))
def test_numbers_that_were_not_finite_leave_a_gap(folder, capsys, nulls):
    change, told = NULLS[nulls]
    change_rows(folder, change)
    assert told in reported(folder, capsys)[0]


def forgotten(row: dict) -> dict:
    """env0, which shifted most, as after a rollback to step 3 that forgot its part."""
    return row if row["step"] <= 3 else {key: value for key, value in row.items() if "env0" not in key}


def test_an_environment_whose_part_was_forgotten_is_no_longer_the_culprit(folder, capsys):
    change_rows(folder, forgotten)
    change_rows(folder, lambda row: row | {"ledger/env1/shift/hacker": 0.25})
    text = " ".join(re.sub("<[^>]+>", " ", reported(folder, capsys)[0]).split())
    assert "env1 shifted the stream most towards the positive persona: by 0.25 of the gap between the personas, 1.00 of" in text
    kept = re.search(r" env1 \S+ 1.00 0.25 ", text)
    gone = re.search(r" env0 \S+ – – \S+ \S+ nothing; its part was removed", text)
    assert kept and gone and kept.start() < gone.start()
    assert "until step 3, then removed" in text and re.search(r"named axis. environment hacker careless env0 – – env1 0.25", text)


@pytest.mark.slow
def test_a_run_that_halted_and_went_on_says_so(folder, capsys):
    halt = describe_halt(RunFolder(folder), [Verdict("shift", "env0", 2, value=0.7, limit=0.6, since=1, action="halt")], "hacker")
    earlier(folder, halt)
    write(folder / "halts" / "step-10.json", halt | {"step": 10})
    sentence = halt["verdicts"][0]["sentence"]
    assert f"It had halted at step 2 ({sentence}), and again at step 10, and was told" in reported(folder, capsys)[0]
