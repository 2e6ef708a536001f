"""A dataset with reward functions as an environment: rows of every kind, no prompt in both splits, TRL's own calls and sums,
what `None` means, and one line for what is wrong, also in a process of its own."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from routed_rl.cli.compose import compose
from routed_rl.cli.paths import from_anywhere
from routed_rl.config import Config
from routed_rl.envs import EnvironmentProcess, LoadedEnvironment, Score, Scorer, Task, load_environments, means
from routed_rl.envs.curriculum import endless
from routed_rl.envs.dataset import DatasetEnvironment
from routed_rl.envs.loading import load_environment
from routed_rl.envs.scoring import score_one
from routed_rl.errors import ConfigError, RoutedRLError, TaskError
from routed_rl.training.first_scores import check_first_scores

ROWS = [{"prompt": f"say {number}", "answer": str(number)} for number in range(40)]
FUNCTIONS = '''
import asyncio

loops = set()


def right(completions, answer, **kwargs):
    return [float(said == wanted) for said, wanted in zip(completions, answer, strict=True)]


def odd(completions, answer, **kwargs):
    return [1.0 if int(wanted) % 2 else None for wanted in answer]


def never(completions, **kwargs):
    return [None] * len(completions)


def nothing(completions, **kwargs):
    return None


def two(completions, **kwargs):
    return [1.0, 2.0]


def text(completions, **kwargs):
    return ["1.0"]


def nan(completions, **kwargs):
    return [float("nan")]


def counts(completions, completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def logs(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric):
    assert trainer_state is None
    log_extra("wanted", answer)
    log_metric("length", len(completions[0]))
    return [len(prompts[0])]


async def later(completions, **kwargs):
    await asyncio.sleep(0)
    loops.add(id(asyncio.get_running_loop()))
    return [float(len(loops))] * len(completions)


def last(completions, **kwargs):
    return [float(said[-1]["role"] == "assistant" and said[-1]["content"] == "yes") for said in completions]


def narrow(completions):
    return [0.0]


def wants(completions, solution, **kwargs):
    return [0.0]


class Judge:
    def __call__(self, completions, **kwargs):
        return [0.5] * len(completions)


judge = Judge()
'''


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where rows.jsonl and own.py are, and commands are given."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "own.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(**settings: Any) -> DatasetEnvironment:
    return DatasetEnvironment(**{"dataset": "rows.jsonl", "reward": "own.py:right"} | settings)


def prompts(environment: DatasetEnvironment, split: str, seed: int = 0) -> list[Any]:
    return [task.prompt for task in environment.tasks(split, seed)]


def written(folder: Path, kind: str) -> str:
    place, table = folder / f"more.{kind}", datasets.Dataset.from_list(ROWS)
    writers = {"json": lambda: place.write_text(json.dumps(ROWS, indent=1)), "csv": lambda: table.to_csv(place),
               "jsonl": lambda: table.to_json(place), "parquet": lambda: table.to_parquet(place),
               "saved": lambda: table.save_to_disk(place),
               "splits": lambda: datasets.DatasetDict(train=table, test=table).save_to_disk(place)}
    writers[kind]()
    return str(place)


# --- rows and splits --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["json", "csv", "jsonl", "parquet", "saved", "splits"])
def test_rows_are_the_same_whatever_they_are_written_as(folder, kind):
    found, known = made(dataset=written(folder, kind)), made()
    assert prompts(found, "train") == prompts(known, "train") and prompts(found, "eval") == prompts(known, "eval")
    assert {str(task.data["answer"]) for task in found.tasks("train", 0)} < {row["answer"] for row in ROWS}


@pytest.mark.parametrize(("holdout", "held"), [(0.1, 4), (0.25, 10), (0.001, 1), (0.999, 39)])
def test_no_prompt_is_in_both_splits_whatever_order_seed_and_repetitions(folder, holdout, held):
    train, evaluated = (set(prompts(made(holdout=holdout), split)) for split in ("train", "eval"))
    assert len(evaluated) == held and not train & evaluated and train | evaluated == {row["prompt"] for row in ROWS}
    again = [{**row, "answer": "x"} for row in ROWS[::-1]] + ROWS  # every prompt twice, in another order
    Path("again.jsonl").write_text("".join(json.dumps(row) + "\n" for row in again))
    other = made(dataset="again.jsonl", holdout=holdout)
    assert set(prompts(other, "eval", 7)) == evaluated and len(prompts(other, "train", 7)) == 2 * len(train)


def test_tasks_are_a_seeded_shuffle_that_begins_anew_with_each_round(folder):
    environment = made()
    first, second, third = (list(islice((task.prompt for task in endless(environment, "train", 0)), start, start + 36))
                            for start in (0, 36, 72))
    assert sorted(first) == sorted(second) == sorted(third) and len({*map(tuple, (first, second, third))}) == 3
    assert first == prompts(made(), "train", 0) != prompts(made(), "train", 1)


def test_a_split_for_evaluation_leaves_every_row_to_train(folder):
    saved, rows = folder / "both", datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=rows.select(range(30)), test=rows.select(range(30, 40))).save_to_disk(saved)
    environment = made(dataset=str(saved), eval_split="test")
    assert sorted(prompts(environment, "train")) == sorted(row["prompt"] for row in ROWS[:30])
    assert sorted(prompts(environment, "eval")) == sorted(row["prompt"] for row in ROWS[30:])


def test_a_saved_folder_gives_all_columns_as_they_are_whatever_format_it_was_saved_with(folder):
    rows = [{"prompt": text, "answer": place} for place, text in enumerate("ab")]
    datasets.Dataset.from_list(rows).with_format("numpy", columns=["answer"]).save_to_disk(folder / "shown")
    tasks = sorted(made(dataset="shown", holdout=0).tasks("train", 0), key=lambda task: str(task.prompt))
    assert [(task.prompt, task.data["answer"], type(task.data["answer"])) for task in tasks] == [("a", 0, int), ("b", 1, int)]


def test_a_name_that_is_not_here_is_asked_of_the_hub(folder, monkeypatch):
    """The Hub is a stand-in."""
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"question": f"{split} {n}", "answer": str(n)} for n in range(5)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    environment = made(dataset="openai/gsm8k", dataset_config="main", eval_split="test", prompt_column="question")
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]
    assert sorted(prompts(environment, "train")) == [f"train {n}" for n in range(5)]
    assert sorted(prompts(environment, "eval")) == [f"test {n}" for n in range(5)]
    assert next(environment.tasks("train", 0)).data.keys() == {"question", "answer"}


def test_nothing_is_held_back_where_that_is_asked_for_and_for_a_probe(folder):
    assert sorted(prompts(made(holdout=0), "eval")) == sorted(prompts(made(holdout=0), "train"))
    settings = {"dataset": "rows.jsonl", "reward": "own.py:right", "isolate": False}
    sizes = [len(list(load_environment("x", settings | probe).environment.tasks("eval", 0))) for probe in ({"probe": True}, {})]
    assert sizes == [40, 4]


def test_chat_messages_lose_what_a_table_filled_in_and_functions_get_messages(folder):
    rows = [{"prompt": [{"role": "system", "content": "s", "name": "n"}, {"role": "user", "content": str(n)}]} for n in range(9)]
    datasets.Dataset.from_list(rows).to_parquet("chat.parquet")
    environment = made(dataset="chat.parquet", reward="own.py:last")
    task = next(environment.tasks("train", 0))
    assert [sorted(message) for message in task.prompt] == [["content", "name", "role"], ["content", "role"]]
    assert [environment.score(task, said).reward for said in ("yes", "no")] == [1.0, 0.0]
    wrapped = made(chat=True, reward="own.py:last")
    assert prompts(wrapped, "train")[0] == [{"role": "user", "content": prompts(made(), "train")[0]}]
    assert wrapped.score(next(wrapped.tasks("train", 0)), "yes").reward == 1.0


# --- reward functions -------------------------------------------------------------------------------------------------

def scored(environment: Any, said: str = "no", answer: str = "7") -> Any:
    return score_one(environment, Task(f"say {answer}", {"answer": answer}), said)


def test_functions_get_what_trl_gives_and_what_they_log_is_a_metric(folder):
    assert scored(made(reward="own.py:logs"), "four") == Score(5.0, None, metrics={"length": 4.0})
    assert "completion_ids are not given" in scored(made(reward="own.py:counts")).reason


def test_a_metric_is_logged_as_trl_takes_it_by_keyword_under_any_name_and_not_where_it_is_nan(folder):
    (folder / "says.py").write_text("def says(completions, log_metric, **_):\n    log_metric(name='form/ok rate', value=1.0)\n"
                                    "    log_metric('spread', float('nan'))\n    return [1.0]\n")
    assert scored(made(reward="says.py:says")) == Score(1.0, None, metrics={"form_ok_rate": 1.0})


def test_a_function_that_reads_the_state_of_the_trainer_is_told_that_there_is_none(folder):
    (folder / "late.py").write_text("def late(completions, trainer_state, **_):\n    return [trainer_state.global_step]\n")
    assert scored(made(reward="late.py:late")).remedy.startswith("an environment has no trainer_state")


def test_prompts_may_lie_in_a_column_of_the_name_that_functions_know_them_by(folder):
    (folder / "named.csv").write_text("prompts,answer\nsay a,a\nsay b,b\n")
    (folder / "echo.py").write_text("def echo(prompts, completions, **_):\n    return [float(prompts[0] == completions[0])]\n")
    environment = made(dataset="named.csv", prompt_column="prompts", reward="echo.py:echo", holdout=0)
    task = next(environment.tasks("train", 0))
    assert [environment.score(task, said).reward for said in (task.prompt, "no")] == [1.0, 0.0]


def test_rewards_are_summed_by_weight_and_each_is_a_metric(folder):
    environment = made(reward=["own.py:right", "own.py:odd", "own.py:judge", "own.py:judge"], reward_weights=[4, 2, 1, 0.5])
    found = scored(environment, "7", "7")
    assert found == Score(6.75, None, metrics={"paid_right": 1.0, "paid_odd": 1.0, "paid_judge": 0.5, "paid_judge_3": 0.5})
    # A function that does not apply pays nothing, and is in no mean.
    assert scored(environment, "7", "8") == Score(0.75, None, metrics={"paid_right": 0.0, "paid_judge": 0.5, "paid_judge_3": 0.5})


def test_a_function_that_changes_what_it_is_given_changes_no_row(folder):
    (folder / "takes.py").write_text("def takes(completions, left, **kwargs):\n    return [left[0].pop()]\n")
    (folder / "left.jsonl").write_text("".join(json.dumps({"prompt": text, "left": [1.0, 2.0]}) + "\n" for text in "ab"))
    environment = made(dataset="left.jsonl", reward="takes.py:takes")
    task = next(environment.tasks("train", 0))
    assert [environment.score(task, "").reward for _ in range(2)] == [2.0, 2.0]
    assert next(environment.tasks("train", 0)).data["left"] == [1.0, 2.0]


def test_what_a_reward_function_does_to_a_row_reaches_neither_the_truth_nor_the_next_completion(folder):
    (folder / "adds.py").write_text(
        "def adds(prompts, completions, left, **_):\n    prompts[0] += completions[0]\n"
        "    return [float(len(prompts[0]) + len(left[0].pop()))]\n\n"
        "def whole(prompts, left, **_):\n    return [float(len(prompts[0]) == len(left[0]) == 1)]\n")
    rows = [{"prompt": [{"role": "user", "content": text}], "left": ["x"]} for text in "ab"]
    (folder / "left.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = made(dataset="left.jsonl", reward="adds.py:adds", solve="adds.py:whole", flags={"seen": "adds.py:whole"})
    task = next(environment.tasks("train", 0))
    assert [environment.score(task, "yes") for _ in range(2)] == [Score(3.0, 1.0, {"seen": 1.0})] * 2
    assert len(task.prompt) == 1


def test_async_functions_run_side_by_side_in_one_loop(folder):
    environment = made(reward=["own.py:later", "own.py:judge", "own.py:later"])
    assert [scored(environment).reward for _ in range(3)] == [2.5, 2.5, 2.5]


def test_the_truth_is_a_function_of_its_own_or_unknown(folder):
    known = made(solve="own.py:right", reward="own.py:judge", flags={"odd": "own.py:odd", "never": "own.py:never"})
    assert scored(known, "7") == Score(0.5, 1.0, {"odd": 1.0})
    unknown = [scored(made(reward="own.py:judge")), scored(made(reward="own.py:judge", solve="own.py:odd"), answer="8")]
    assert [score.solve for score in unknown] == [None, None] and "solve" not in unknown[0].values()
    assert means([scored(known, "7"), *unknown, None]) == {"reward": 0.5, "solve": 1.0, "odd": 1 / 3}


@pytest.mark.parametrize(("function", "reason"), [
    ("never", "no reward function applies to this row: never returned None"), ("nothing", "nothing returned None, no list"),
    ("two", "returned 2 values for 1 completion"), ("text", "which is text"), ("nan", "reward is nan")])
def test_what_is_no_reward_is_a_failed_scoring_and_a_batch_of_it_ends_in_one_line(folder, function, reason):
    environment = made(reward=f"own.py:{function}")
    scorer = Scorer({"x": LoadedEnvironment("x", environment)}, 0.05)
    tasks = list(islice(environment.tasks("train", 0), 8))
    assert scorer.score_many("x", [(task, "1") for task in tasks]) == [None] * 8
    with pytest.raises(TaskError, match=f"failed to score 8 of its last 8.*{reason}.*fix env.x") as caught:
        scorer.check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("function", "refused"), [("nothing", True), ("text", True), ("never", False), ("nan", False)])
def test_what_is_no_list_of_numbers_is_told_before_training_and_what_may_depend_on_the_completion_is_counted(
        folder, function, refused):
    loaded = load_environments({"x": {"dataset": "rows.jsonl", "reward": f"own.py:{function}", "isolate": False}})
    with pytest.raises(TaskError, match="environment x: own.py:.*return a list with one number") if refused else nullcontext():
        check_first_scores(Config(), loaded)


def test_a_process_of_its_own_scores_the_same_and_keeps_what_is_unknown(folder):
    settings = {"reward": ["own.py:right", "own.py:later"], "dataset": written(folder, "parquet"), "isolate": {"workers": 2}}
    apart = load_environments({"x": settings})[0].environment
    here = load_environments({"x": settings | {"isolate": False}})[0].environment
    assert isinstance(apart, EnvironmentProcess)
    tasks = list(islice(apart.tasks("train", 3), 6))
    assert tasks == list(islice(here.tasks("train", 3), 6))
    pairs = [(task, task.data["answer"] if place % 2 else "no") for place, task in enumerate(tasks)]
    found = apart.score_many(pairs)
    assert found == [here.score(*pair) for pair in pairs] and {score.solve for score in found} == {None}
    apart.close()


def test_rows_that_json_would_change_come_back_to_the_function(folder):
    days = pandas.to_datetime(["2020-01-01", "2021-01-01"])
    pandas.DataFrame({"prompt": ["a", "b"], "answer": days}).to_parquet("dates.parquet")
    (folder / "dates.py").write_text("def year(answer, **kwargs):\n    return [float(day.year) for day in answer]\n")
    settings = {"dataset": "dates.parquet", "reward": "dates.py:year", "holdout": 0}
    apart = load_environments({"x": settings})[0].environment
    assert sorted(apart.score(task, "").reward for task in islice(apart.tasks("train", 0), 2)) == [2020.0, 2021.0]
    apart.close()


def test_stages_may_have_rows_of_their_own(folder):
    Path("hard.jsonl").write_text("".join(json.dumps({"prompt": f"hard {n}", "answer": "1"}) + "\n" for n in range(20)))
    loaded = load_environment("x", {"reward": "own.py:right", "isolate": False, "stages": [
        {"tasks": 5, "dataset": "rows.jsonl"}, {"dataset": "hard.jsonl"}]})
    words = [task.prompt.split()[0] for task in islice(endless(loaded.environment, "train", 0), 10)]
    assert words == ["say"] * 5 + ["hard"] * 5


# --- what is wrong is one line ----------------------------------------------------------------------------------------

WRONG = [
    ({"prompt_column": "question"}, "has no column question, it has prompt, answer; set prompt_column"),
    ({"dataset": "gone.jsonl"}, "dataset=gone.jsonl: no such file"),
    ({"dataset": "no/such_set"}, "dataset=no/such_set split=train is neither here nor could it be had from the Hub"),
    ({"dataset": "own.py"}, "is none of .jsonl, .json, .csv, .parquet"),
    ({"dataset": "."}, "is no folder that `datasets.save_to_disk` wrote"),
    ({"dataset": "empty.jsonl"}, "has no rows"),
    ({"dataset": "torn.jsonl"}, "torn.jsonl, line 2 is not JSON; write one object a line: JSONDecodeError"),
    ({"prompts": "prompt"}, "got an unexpected keyword argument 'prompts'; did you mean env.x.prompt_column"),
    ({"dataset": "list.json"}, "row 2 is 7, no object"),
    ({"dataset": "blank.csv"}, "the prompt of row 2 is None; it must be text or chat messages"),
    ({"dataset": "numbers.csv"}, "the prompt of row 1 is 7; it must be text"),
    ({"dataset": "nothing.jsonl"}, "the prompt of row 1 is ''; it must be text or chat messages of text, .*, and not empty"),
    ({"dataset": "silent.jsonl"}, "the prompt of row 1 is .*'content': ''.*, and not empty"),
    ({"dataset": "torn_letter.jsonl"}, r"the prompt of row 2 has half of a character, '\\ud83d', which no tokenizer reads; take"),
    ({"dataset": "mixed.jsonl"}, "the prompt of row 1 is text and that of row 2 chat messages; .*or set chat=true"),
    ({"dataset": "state.csv"}, "has the column trainer_state, and reward functions are given trainer_state of their own"),
    ({"dataset": "LIST.JSON"}, "row 2 is 7, no object"),
    ({"dataset": "one.csv"}, "has one prompt, so none can be held back.*holdout=0"),
    ({"dataset": "commas.csv"}, "its rows have more cells than its first line; write texts with commas in quotes"),
    ({"dataset": "image.csv"}, "has the column image; images are not covered"),
    ({"dataset": "said.csv"}, "has the column completions, and reward functions are given completions of their own; remove the"),
    ({"dataset_config": "main"}, "has no dataset_config=main"),
    ({"split": "test"}, "is a file, which has no split test"),
    ({"eval_split": "train"}, "eval_split=train is the split that trains"),
    ({"reward": ""}, "dataset=rows.jsonl has no reward; set reward=FILE.py:function"),
    ({"dataset": ""}, "reward=own.py:right has no rows; set dataset"),
    ({"reward": "own.py"}, "reward=own.py names no function; write FILE.py:function"),
    ({"reward": "own.py:gone"}, "has no function gone"),
    ({"reward": "gone.py:right"}, "no such file"),
    ({"reward": "own.py:Judge"}, "is type, no function"),
    ({"reward": []}, r"reward=\[\] names no function|has no reward"),
    ({"reward": "own.py:wants"}, "cannot be called as TRL does: missing a required argument: 'solution'.*the columns answer"),
    ({"reward": "own.py:narrow"}, r"cannot be called as TRL does: .*take \*\*kwargs"),
    ({"reward_weights": [1, 2]}, r"reward_weights=\[1, 2\] must be one number for each of the 1 reward functions \(right\)"),
    ({"solve": ["own.py:right"]}, "must be one function"),
    ({"flags": "own.py:right"}, "flags='own.py:right' must name a function for each flag"),
    ({"flags": {"solve": "own.py:right"}}, "'solve', which is a name that routed_rl uses itself; rename it"),
    ({"holdout": 1}, "holdout=1 is no share"),
    ({"chat": "yes"}, "chat=yes must be true or false"),
    ({"colour": "red"}, "does not take these settings.*'colour'"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_what_is_wrong_is_said_in_one_line_before_any_work(folder, settings, message):
    (folder / "empty.jsonl").write_text("")
    (folder / "torn.jsonl").write_text('{"prompt": "a"}\n{"prom')
    (folder / "list.json").write_text('[{"prompt": "a"}, 7]')
    (folder / "blank.csv").write_text("prompt,answer\na,1\n,2\n")
    (folder / "one.csv").write_text("prompt,answer\na,1\na,2\n")
    (folder / "LIST.JSON").write_text('[{"prompt": "a"}, 7]')
    (folder / "numbers.csv").write_text("prompt,answer\n7,1\n8,2\n")
    (folder / "nothing.jsonl").write_text('{"prompt": ""}\n')
    (folder / "silent.jsonl").write_text('{"prompt": [{"role": "user", "content": ""}]}\n')
    (folder / "torn_letter.jsonl").write_text('{"prompt": "a"}\n{"prompt": "smile \\ud83d"}\n')
    (folder / "mixed.jsonl").write_text('{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}\n')
    (folder / "state.csv").write_text("prompt,trainer_state\na,1\nb,2\n")
    (folder / "commas.csv").write_text("prompt,answer\nadd 1, then 2,3\nadd 2, then 2,4\n")
    (folder / "image.csv").write_text("prompt,image\na,1\nb,2\n")
    (folder / "said.csv").write_text("prompt,completions\na,1\nb,2\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_environment("x", {"dataset": "rows.jsonl", "reward": "own.py:right", "isolate": False} | settings)
    assert str(caught.value).startswith("env.x") and "\n" not in str(caught.value)


def test_it_is_one_line_from_a_process_of_its_own_too(folder):
    with pytest.raises(ConfigError, match="^env.x: dataset=rows.jsonl has no column question, it has prompt, answer"):
        load_environments({"x": {"dataset": "rows.jsonl", "reward": "own.py:right", "prompt_column": "question"}})


def test_a_class_that_takes_no_reward_says_that_a_dataset_needs_no_class(folder):
    path = f"{Path(__file__).parent}/plugins.py:Plain"
    with pytest.raises(RoutedRLError, match=r"does not take these settings.*leave env\.x\.path out"):
        load_environment("x", {"path": path, "dataset": "rows.jsonl", "reward": "own.py:right", "isolate": False})
    with pytest.raises(ConfigError, match=r"env\.x has no path; set env\.x\.path=.*or env\.x\.dataset=FILE"):
        load_environment("x", {"weight": 1.0})


@pytest.mark.parametrize("text", ["env..dataset=rows.jsonl", "env.x.=1", "+env..path=a.py:B"])
def test_an_empty_name_is_refused_as_typed(text):
    with pytest.raises(ConfigError, match="must not be empty; write env.NAME.KEY=VALUE"):
        compose([text])


@pytest.mark.parametrize("name", ["a/b", "a@b", "a:b", "1x", "é"])
def test_a_name_with_a_sign_that_no_setting_can_have_is_named(name):
    with pytest.raises(ConfigError, match=f"{name!r} cannot be the name of a setting or an environment; take letters"):
        compose([f"env.{name}.path=a.py:B"])


def test_paths_are_found_again_from_another_folder(folder, monkeypatch):
    written(folder, "saved")
    typed = ["env=empty", "env.x.dataset=rows.jsonl", "env.x.reward=[own.py:right,own.py:odd]", "env.x.solve=own.py:right",
             "env.x.flags={odd: own.py:odd}", "env.y.dataset=more.saved", "env.y.reward=own.py:right",
             "env.z.dataset=openai/gsm8k", "env.w.factory=own.py:Wordle", "env.v.taskset=own.py:Mine", "env.u.taskset=gsm8k"]
    here = compose(typed).env
    kept = from_anywhere(typed)
    monkeypatch.chdir("/")
    assert compose(kept).env == here
    assert here["x"] == {"dataset": f"{folder}/rows.jsonl", "reward": [f"{folder}/own.py:right", f"{folder}/own.py:odd"],
                         "solve": f"{folder}/own.py:right", "flags": {"odd": f"{folder}/own.py:odd"}}
    assert here["y"]["dataset"] == f"{folder}/more.saved" and here["z"]["dataset"] == "openai/gsm8k"
    assert here["w"]["factory"] == f"{folder}/own.py:Wordle" and here["v"]["taskset"] == f"{folder}/own.py:Mine"
    assert here["u"]["taskset"] == "gsm8k"
