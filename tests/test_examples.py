"""What stands in `examples/` runs as it is written there, and a run on a dataset resumes bit for bit."""

from __future__ import annotations

import ast
import json
import runpy
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder, data_root
from routed_rl.cli import main
from tests.parts import write_parts

FOLDER = data_root() / "examples"
QUICK = ["trainer.max_steps=4", "trainer.save_steps=2", "trainer.per_device_train_batch_size=16", "subspace.rank=2",
         "trainer.max_completion_length=5", "evaluation.samples=8"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("user"))


def written(parts: Path) -> list[str]:
    """The command of the docstring, with a model and prompts that there are."""
    text = ast.get_docstring(ast.parse((FOLDER / "own_reward.py").read_text())) or ""
    command = shlex.split(text[text.index("routed-rl"):])[1:]
    return [word.replace("=MODEL", f"={parts}/model").replace("=PROMPTS.", f"={parts}/prompts.") for word in command]


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "own"
    assert main([*written(parts), *QUICK, f"out={out}"]) == 0
    return out


def test_the_examples_are_short():
    assert sum(len(file.read_text().splitlines()) for file in FOLDER.glob("own_reward.*")) <= 40
    assert all(len(file.read_text().splitlines()) <= 40 for file in FOLDER.glob("library*.py"))


@pytest.mark.parametrize("script", ["library", "library_reward", pytest.param("library_lora", marks=pytest.mark.slow)])
def test_the_scripts_with_the_library_train_and_leave_a_model_that_is_deployed(parts, tmp_path, monkeypatch, capsys, script):
    own = [f"{parts}/model", f"{parts}/prompts.jsonl", f"{tmp_path}/run"] if script == "library_reward" else ["2"]
    monkeypatch.setattr(sys, "argv", [script, *own])
    make = tempfile.mkdtemp
    monkeypatch.setattr("tempfile.mkdtemp", lambda *own, **given: make(*own, **given) if own or given else str(tmp_path / "run"))
    runpy.run_path(str(FOLDER / f"{script}.py"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert len(json.loads(last)) == 4 if script == "library_reward" else "what is deployed" in last
    files = {path.name for path in (tmp_path / "run" / "deployed").iterdir()}
    kind = "adapter_" if script == "library_lora" else ""
    assert files >= {"tokenizer.json", "quarantine.safetensors", f"{kind}config.json", f"{kind}model.safetensors"}


def test_own_reward_functions_train_and_are_evaluated(run):
    models = json.loads((run / "summary.json").read_text())["models"]
    assert set(models) == {"base", "policy", "deployed"}
    assert set(models["deployed"]["sums"]) >= {"reward", "solve", "many", "words", "paid_says_answer", "paid_short"}
    assert models["policy"]["sums"]["failures"] == 0


@pytest.mark.slow
def test_it_resumes_bit_for_bit(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "own")
    shutil.rmtree(again / "checkpoints" / "step-4")
    assert main(["resume", str(again)]) == 0
    ours, theirs = (load_file(RunFolder(each).require_checkpoint() / "model.safetensors") for each in (again, run))
    assert RunFolder(again).steps() == [2, 4] and all(ours[name].equal(theirs[name]) for name in theirs)
    rows = [[{key: value for key, value in json.loads(line).items() if key.startswith("environment/")}
             for line in (each / "metrics.jsonl").read_text().splitlines()] for each in (again, run)]
    assert rows[0] == rows[1] and len(rows[0]) == 4


@pytest.mark.slow
def test_without_a_function_for_the_truth_it_is_unknown_everywhere(parts, tmp_path, capsys):
    """No solve in a metric, a table or a sentence, and no rule of the monitor that compares it with the pay."""
    command = [word for word in written(parts) if ".solve=" not in word]
    out, steps = tmp_path / "unknown", "trainer.max_steps=2"
    halting = ["monitor.gap.action=halt", "monitor.gap.limit=0", "monitor.gap.allowance=0", "monitor.warmup=0"]
    assert main([*written(parts), *QUICK, *halting, steps, f"out={tmp_path}/known"]) == 3
    capsys.readouterr()
    assert main([*command, *QUICK, *halting, steps, f"out={out}"]) == 0
    summary, rows = json.loads((out / "summary.json").read_text()), (out / "metrics.jsonl").read_text()
    assert all("solve" not in results["sums"] for results in summary["models"].values()) and "/solve" not in rows
    assert "environment/sums/reward" in rows and "solve" not in capsys.readouterr().out and (out / "report.html").exists()


def test_functions_that_never_apply_end_the_run_in_one_line(parts, tmp_path, capsys):
    (tmp_path / "never.py").write_text("def never(completions, **kwargs):\n    return [None] * len(completions)\n")
    command = [word for word in written(parts) if "env.sums.reward" not in word]
    code = main([*command, *QUICK, f"env.sums.reward={tmp_path}/never.py:never", f"out={tmp_path}/run"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and "no reward function applies to this row: never returned None; fix env.sums" in error


def test_env_check_and_env_try_know_it_and_a_dry_run_refuses_a_wrong_column(parts, capsys):
    settings = [word for word in written(parts) if word.startswith("env.sums")]
    assert main(["env", "try", "sums", "--n", "1", *settings]) == 0
    assert "DatasetEnvironment" in (said := capsys.readouterr().out) and "add " in said and "reward " in said
    code, said = main(["env", "check", "sums", *settings]), capsys.readouterr()
    assert code == 4 and "the prompt" in said.out  # the numbers of a sum are among the words of its prompt
    assert main([*written(parts), "env.sums.prompt_column=question", "--dry-run"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: env.sums: dataset=") and "has no column question, it has prompt, answer; set" in error


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel would draw into nothing
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / "first_experiment.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(data_root())}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) == 2


def test_the_notebook_is_committed_without_what_it_printed():
    notebook = json.loads((FOLDER / "first_experiment.ipynb").read_text())
    assert [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
