"""What a score may be: numbers that training can hold, names that are free; what is none is a failure, and is seen."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch

from routed_rl.config import Config, DetectorConfig, EvaluationConfig, QuarantineConfig, RolloutConfig, SubspaceCheckConfig
from routed_rl.envs import Conversation, LoadedEnvironment, Score, Scorer, Task, means
from routed_rl.envs.adapters.remote import RemoteEnvironment, _score
from routed_rl.envs.core import LARGEST, RESERVED
from routed_rl.envs.faults import ContractError, Failure
from routed_rl.envs.loading import load_environment
from routed_rl.envs.scoring import score_many, score_one
from routed_rl.errors import ConfigError, TaskError
from routed_rl.evaluate import average
from tests.envs import said
from tests.envs.said import Said, Talk
from tests.envs.server import Server

GOOD: dict[str, Any] = {
    "Score(5e-324)": 5e-324, "Score(-1e15)": -1e15, "Score(True)": 1.0, "Score(np.float32(2))": 2.0, "Score(Decimal('0.5'))": 0.5,
    "Score(Fraction(1, 4))": 0.25, "Score(-0.0)": 0.0, "Score(7, True)": 7.0}
BAD = [
    *(f"Score({number})" for number in (
        "-1e60", "1e39", "1e16", "10**400", "Fraction(10**400)", "Decimal('1e400')", "math.nan", "np.float32('inf')", "'1'",
        "b'1'", "None", "1j", "np.zeros(2)", "Decimal('sNaN')", "")),
    *(f"Score(1, {solve})" for solve in ("7", "-0.1", "math.nan", "'1'", "10**400")),
    *(f"Score(1, flags={flags})" for flags in (
        "{'a': 2}", "{'a': None}", "{'a': 'no'}", "None", "[None]", "{1: True}", "3")),
    *(f"Score(1, metrics={metrics})" for metrics in (
        "{'a': 1e39}", "{'a': -math.inf}", "{'a': '1'}", "{None: 1}", "[1]", "{'a': 10**400}")),
    "1.0", "None"]
TAKEN = ["", "a/b", "a.b", "a b", "a\nb", "\ud800", "x" * 10_000, *sorted(RESERVED)]


class Takes:
    """Uses the task up, as a judge that adds to the conversation and a check that ticks off answers do."""

    def tasks(self, split: str, seed: int):
        yield Task([{"role": "user", "content": "go"}], {"left": [1, 2]})

    def score(self, task, completion):
        task.prompt.append({"role": "assistant", "content": completion})
        task.data["left"].pop()
        return Score(len(task.prompt) + len(task.data["left"]))


def test_what_a_scorer_does_to_a_task_is_gone_for_the_next_completion_also_in_this_process():
    task = next(Takes().tasks("train", 0))
    assert score_many(Takes(), [(task, "a")] * 3) == [Score(3.0)] * 3
    assert len(task.prompt) == 1 and task.data == {"left": [1, 2]}


def test_a_place_that_is_no_number_is_a_mistake_in_the_contract():
    for place in (math.inf, math.nan, -1, "x"):
        with pytest.raises(ContractError, match="spans must be names with pairs"):
            Score(1.0, spans={"answer": [(0, place)]})


def scorer(environment: Any, most: float = 1.0) -> Scorer:
    return Scorer({"x": LoadedEnvironment("x", environment)}, most)


@pytest.fixture(scope="module")
def isolated() -> Iterator[Any]:
    environment: Any = load_environment("x", {"path": f"{said.__file__}:Said"}).environment
    yield environment
    environment.close()


@pytest.mark.parametrize("where", ["here", "isolated"])
def test_a_number_that_cannot_be_counted_is_a_failure_and_every_other_is_not(where, isolated):
    environment = Said() if where == "here" else isolated
    found = scorer(environment).score_many("x", [(Task("?"), text) for text in [*GOOD, *BAD]])
    assert [score and score.reward for score in found] == [*GOOD.values(), *[None] * len(BAD)]
    for score in found[:len(GOOD)]:
        assert score is not None and math.isfinite(torch.tensor([score.reward] * 512 + [-score.reward]).std().item())


def test_what_is_wrong_with_a_number_is_said():
    reasons = {"Score(-1e60)": "reward is -1e+60, which is not within 1e+15",
               "Score(1, 7)": "solve is 7, which does not lie in [0, 1]", "Score('1')": "reward must be a number, got '1'",
               "Score(1, flags={'a': math.nan})": "a is nan, which is not finite",
               "Score(1, metrics={'kept': '1'})": "kept must be a number"}
    for text, reason in reasons.items():
        (result,) = score_many(Said(), [(Task("?"), text)])
        assert isinstance(result, Failure) and reason in result.reason, (text, result)
    assert not Score(LARGEST).problem
    assert Score(cast(Any, torch.tensor(3.0))).reward == 3.0  # a number in a tensor, and no tensor of several
    with pytest.raises(ValueError, match="reward must be a number"):
        Score(cast(Any, torch.zeros(2)))


@pytest.mark.parametrize("kind", ["flags", "metrics"])
@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_is_wrong_or_ours_ends_the_run_with_one_line_and_never_hides_a_number(kind, name):
    text = f"Score(0.25, 0.5, {kind}={{{name!r}: 1}})"
    score = Said().score(Task("?"), text)
    assert (score.values()["reward"], score.values()["solve"]) == (0.25, 0.5)
    with pytest.raises(TaskError, match=r"^environment x: \S+said\.py:20: calls a flag or a metric .*; rename it$") as caught:
        scorer(Said()).score_many("x", [(Task("?"), text)])
    assert len(str(caught.value)) < 300


def test_a_wrong_name_from_another_process_from_an_episode_and_over_the_wire_ends_the_run(isolated):
    text = "Score(1, flags=['reward'])"
    with pytest.raises(TaskError, match="'reward', which is a name that routed_rl uses itself"):
        scorer(isolated).score_many("x", [(Task("?"), text)])
    for words in (text, "Score(1, flags=['turns'])", "Score(1, metrics={'turns': 3})"):
        conversation = Conversation(Talk(), next(Talk().tasks("train", 0)))
        conversation.reply(words)
        with pytest.raises(TaskError, match=r"environment x: \S+said\.py:25: calls a flag or a metric '(reward|turns)'"):
            scorer(Talk()).count("x", conversation.outcome)
    with pytest.raises(TaskError, match="rename it"):
        scorer(None).count("x", _score({"reward": 1, "flags": {"solve": 1}}))
    with pytest.raises(TaskError, match="'a' twice"):
        scorer(None).count("x", Score(1, flags=["a"], metrics={"a": 2.0}))


WIRED = [
    *({"reward": 1, kind: {name: 1}} for kind in ("flags", "metrics")
      for name in ("reward", "solve", "completions", "failures", "a/b", "", "norm")),
    {"reward": 1, "flags": "hack"}, {"reward": 1, "flags": "norm"}, {"reward": 1, "flags": ["reward"]}, {"reward": 1, "solve": 7},
    {"reward": "1"}, {"reward": 1, "solve": "1"}, {"reward": 1, "metrics": {"a": "1"}}, {"reward": 1e39}]


def test_a_server_and_an_isolated_episode_get_the_same_answer_to_a_wrong_score_as_an_environment_in_process(isolated):
    remote: Any = {"path": "routed_rl.envs.adapters.remote:RemoteEnvironment"}
    talk: Any = load_environment("x", {"path": f"{said.__file__}:Talk"}).environment
    task = next(talk.tasks("train", 0))
    with Server() as server:
        there: Any = load_environment("x", remote | {"url": server.url}).environment
        for score in WIRED:
            text = f"Score(**{score!r})"
            server.fault = lambda path, times, score=score: json.dumps(score)
            conversation = Conversation(talk, task)
            conversation.reply(text)
            ways = [score_one(Said(), task, text), isolated.score_many([(task, text)])[0], there.score_many([(task, "")])[0],
                    RemoteEnvironment(server.url).score(task, "") if "'1'" not in text else None, conversation.outcome]
            said_of = [verdict(outcome) for outcome in ways if outcome is not None]
            assert len(set(said_of)) == 1, (score, said_of)
    there.close()
    talk.close()


def verdict(outcome: object) -> str:
    """The TaskError that a run ends with, the failure that is counted, or the numbers; without the line of the plug-in, which a
    server does not tell."""
    return re.sub(r"(environment x)?:? ?\S+\.py:\d+: ", r"\1 ", told(outcome)).strip()


def told(outcome: object) -> str:
    watch = scorer(None)
    try:
        found = watch.count("x", outcome)
    except TaskError as error:
        return str(error)
    return str({**found.values(), "turns": 0}) if found else watch.last_error["x"]


def test_one_flag_may_stand_alone_and_a_number_as_text_is_no_number():
    assert Score(1, flags="hack").flags == _score({"reward": 1, "flags": "hack"}).flags == {"hack": 1.0}
    with pytest.raises(ValueError, match="reward must be a number"):
        _score({"reward": "1"})


def test_a_metric_is_averaged_over_those_that_have_it_and_a_flag_over_all():
    scores = [Score(1, 1, ["a"], {"length": 4.0}), Score(0, 0, (), {"length": 2.0}), Score(0, 0.5), None]
    assert means(scores) == {"reward": 1 / 3, "solve": 0.5, "a": 1 / 3, "length": 3.0} and means([None]) == {}
    assert average("x", scores) == {**means(scores), "completions": 4, "failures": 1}
    assert all(map(math.isfinite, means([Score(LARGEST, metrics={"a": LARGEST})] * 10_000).values()))


@pytest.mark.parametrize(("failed", "scored", "most", "fatal"), [
    (1, 1, 0.05, True), (2, 2, 0.05, True), (1, 2, 0.05, False), (2, 16, 0.05, True), (15, 16, 0.5, True), (10, 16, 0.5, False),
    (1, 16, 0.0, True), (2, 40, 0.05, False), (3, 40, 0.05, True), (3, 3, 1.0, False)])
def test_too_many_failures_are_fatal_also_where_there_are_few_completions(failed, scored, most, fatal):
    watch = scorer(Said(), most)
    watch.score_many("x", [(Task("?"), "1/0" if place < failed else "Score(1)") for place in range(scored)])
    if fatal:
        with pytest.raises(TaskError, match=rf"score {failed} of its last {scored} completions .*raised ZeroDivisionError"):
            watch.check()
    else:
        watch.check()


def test_old_successes_do_not_hide_that_every_scoring_fails_now():
    watch = scorer(Said(), 0.05)
    for place in range(20_000 + 64):
        watch.count("x", Score(1.0) if place < 20_000 else OSError("gone"))
    with pytest.raises(TaskError, match=r"^environment x failed to score 64 of its last \d+ completions \(limit 5%\); last: "
                                        r".*raised OSError: gone; .*fix env\.x"):
        watch.check()


@pytest.mark.parametrize("name", ["", "a/b", "a b", "all", "cosine", "norm", "total", "unattributed", "x" * 300])
def test_an_environment_may_not_have_a_name_that_metrics_use(name):
    with pytest.raises(ConfigError, match="an environment's name"):
        load_environment(name, {"path": f"{said.__file__}:Said"})


@pytest.mark.parametrize("settings", [
    *({"weight": weight} for weight in (math.nan, math.inf, -1, 1e39, 10**400)), {"rate": math.nan},
    {"deep": {"rates": [1.0, math.inf]}}, {"isolate": {"timeout_s": math.inf}}, {"isolate": {"timeout_s": -1}}])
def test_settings_of_an_environment_that_are_no_finite_numbers_are_refused(settings):
    with pytest.raises(ConfigError, match=r"env\.x\..* must be a (finite )?number"):
        load_environment("x", {"path": f"{said.__file__}:Said", **settings})


@pytest.mark.parametrize(("section", "name"), [
    (EvaluationConfig, "max_failures"), (RolloutConfig, "gpu_memory"), (SubspaceCheckConfig, "auroc"),
    (SubspaceCheckConfig, "stability"), (SubspaceCheckConfig, "p"), (DetectorConfig, "fpr")])
def test_no_share_is_above_1(section, name):
    assert getattr(section(**{name: 1.0}), name) == 1
    with pytest.raises(ConfigError, match=rf"{name} must lie in \[0, 1\], got 1.01; it is a share"):
        section(**{name: 1.01})


@pytest.mark.parametrize("text", [".inf", "-.INF", "+.inf", ".NaN"])
def test_what_yaml_calls_infinite_is_so_on_the_command_line_too(text):
    with pytest.raises(ConfigError, match=re.escape(f"env.x.deep.1 must be a finite number, got {text}")):
        Config(env={"x": {"deep": [1, text]}})
    assert Config(env={"x": {"word": "a.inf", "name": "inf", "none": ".info"}})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_setting_is_nan_or_infinite(value):
    for made in (lambda: Config(env={"x": {"rate": value}}), lambda: Config(trainer={"learning_rate": value}),
                 lambda: EvaluationConfig(temperature=value), lambda: EvaluationConfig(max_failures=value),
                 lambda: QuarantineConfig(max_shift=value), lambda: QuarantineConfig(betas=(0.9, value))):
        with pytest.raises(ConfigError, match=f"must be a finite number, got {value}"):
            made()
