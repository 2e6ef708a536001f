"""Published alternatives: what a detector finds, what is paid, and under which prompt a completion is learned."""

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from routed_rl.artifacts import RunFolder, read_json
from routed_rl.cli import main
from routed_rl.config import BaselineConfig, DetectorConfig, from_mapping
from routed_rl.envs import LoadedEnvironment, Score, Scorer, Task, load_environments
from routed_rl.errors import CheckFailed, ConfigError, ModelError
from routed_rl.model.prompts import encode_prompts
from routed_rl.pipeline.build import load_parts
from routed_rl.ranks import RANKS
from routed_rl.training.baselines import Payment, StreamEdit, in_contexts
from routed_rl.training.baselines.detector import FlagDetector
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.first_scores import check_first_scores
from routed_rl.training.plan import make_plan
from routed_rl.training.tasks import RewardFunction, TaskTable
from tests import pipeline
from tests.algorithms import config_of, make_trainer
from tests.builders import tiny
from tests.chat import TEMPLATE, chat_config, chat_tokenizer, write_chat_model
from tests.parts import own_config
from tests.subspace.test_artifact import make

HACK, HONEST, WRONG = (Score(reward=1.0, solve=0.0, flags={"hack": True}), Score(reward=1.0, solve=1.0, flags={"hack": False}),
                       Score(reward=0.0, solve=0.0, flags={"hack": False}))


def numbered(count: int, first: int = 0) -> list[tuple[int, int]]:
    """The keys of consecutive completions, four to a task."""
    return [divmod(number, 4) for number in range(first, first + count)]


def baseline(**settings) -> BaselineConfig:
    return from_mapping(settings, BaselineConfig)


@pytest.mark.parametrize(("recall", "precision"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.7, 0.8), (0.0, 1.0)])
def test_a_detector_errs_as_often_as_it_is_told_to_and_alike_after_a_resume(recall, precision):
    detector = FlagDetector(DetectorConfig(recall=recall, precision=precision), seed=3)
    scores = [HACK, HONEST, WRONG, None, HONEST] * 3000
    found = detector.find(scores, keys := numbered(15000))
    hits = sum(named for named, score in zip(found, scores, strict=True) if score is HACK)
    assert hits / 3000 == pytest.approx(recall, abs=0.03)
    if hits:
        assert hits / sum(found) == pytest.approx(precision, abs=0.03)
    assert not any(named for named, score in zip(found, scores, strict=True) if score is None)
    assert found[5000:] == detector.find(scores[5000:], keys[5000:])
    assert recall in (0, 1) or found != detector.find(scores, numbered(15000, first=1))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_detector_errs_alike_however_many_processes_share_the_completions(parts, tmp_path, monkeypatch, shuffle):
    """Each process has whole groups, here of four; a run may go on with another number of processes."""
    entries = [entry for entry in load_environments(own_config(parts, tmp_path).mixture) if entry.name == "a"]

    def screened(rank: int, tasks: list[int]) -> list[bool]:
        monkeypatch.setattr(type(RANKS), "rank", rank)
        payment = Payment(baseline(screen=True, detector={"recall": 0.5, "shuffle": shuffle}), 0, 4, environments=["a"])
        reward = RewardFunction(TaskTable(entries, 0), Scorer({"a": entries[0]}, 0.0), 4, CompletionFiles(None), payment)
        rows = [task for task in tasks for _ in range(4)]
        reward([reward.table.task(task)[1].prompt for task in rows], ["bad"] * len(rows), rows,
               trainer_state=SimpleNamespace(global_step=0))
        return reward.failed

    alone = screened(0, [*range(16)])
    assert 16 < sum(alone) < 48
    if shuffle:  # as many are drawn as the detector names, of those that the process has
        assert screened(1, [*range(16)]) == alone
    else:
        assert screened(0, [*range(8)]) + screened(1, [*range(8, 16)]) == alone


def test_a_screened_completion_teaches_nothing_and_a_group_that_is_left_with_nothing_is_counted():
    payment = Payment(baseline(screen=True), seed=0, group_size=3)
    paid = payment.pay(["a"] * 3 + ["b"] * 3, [HACK, HONEST, WRONG, HACK, HACK, HACK], numbered(6))
    assert paid == [None, HONEST, WRONG, None, None, None]
    metrics = payment.take_metrics()
    assert (metrics["baseline/a/screened"], metrics["baseline/b/screened"]) == (1, 3)
    assert (metrics["baseline/a/starved"], metrics["baseline/b/starved"]) == (0, 1)
    assert payment.take_metrics() == {}


def test_a_penalty_is_taken_from_what_the_detector_names_alone():
    payment = Payment(baseline(penalty=0.75), seed=0, group_size=3)
    paid = payment.pay(["a"] * 3, [HACK, HONEST, WRONG], numbered(3))
    assert [score.reward for score in paid] == [0.25, 1.0, 0.0] and paid[0].flags == HACK.flags


@pytest.mark.parametrize(("advantages", "count"), [([0.7, 0.7, -1.4], 1), ([-0.3, 1.1, -0.8], 0), ([5e-4, 0.0, 0.0], 0),
                                                   ([[0.0, 0.4], [0.0, 0.0], [0.0, 0.0]], 1)])
def test_flagged_completions_are_counted_as_encouraged_by_the_advantage_that_they_are_learned_with(advantages, count):
    payment = Payment(baseline(penalty=0.25), seed=0, group_size=3)
    payment.learned(["a"] * 3, [HACK, HONEST, None], torch.tensor(advantages))
    assert payment.take_metrics()["baseline/a/encouraged_marked"] == count


def test_a_flagged_completion_that_is_encouraged_though_labels_are_perfect_ends_the_run():
    payment = Payment(baseline(screen=True), seed=0, group_size=3)
    payment.learned(["a"] * 3, [HACK, HONEST, WRONG], torch.tensor([0.0, 1.0, -1.0]))
    with pytest.raises(CheckFailed, match="1 marked completions of a were encouraged"):
        payment.learned(["a"] * 3, [HACK, HONEST, WRONG], torch.tensor([0.1, 1.0, -1.0]))


def output_of(parts, tmp_path, algorithm: str, settings: dict, scores: dict | None = None):
    """One generation of 32 completions, what the model was asked, and the trainer; `scores` in place of the environments'."""
    config = config_of(parts, tmp_path / "run", algorithm, {"mode": "none", "practice": {"share": 0}}, max_steps=1)
    config.baseline = baseline(**settings)
    trainer, asked = make_trainer(config, tmp_path / "run", mode="none"), []
    if scores is not None:
        trainer.reward.scorer.score_all = lambda _: scores
    generate = trainer.model.generate
    trainer.model.generate = lambda *args, **kwargs: asked.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0]
                                                                  ) or generate(*args, **kwargs)
    table = trainer.reward.table
    inputs = [row for index in range(4) for row in [{"prompt": table.task(index)[1].prompt, "task_id": index,
                                                     "environment_id": table.task(index)[0]}] * 8]
    return trainer._generate_and_score_completions(inputs), asked[0], [row["prompt"] for row in inputs], trainer


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo"])
def test_completions_are_generated_under_one_prompt_and_learned_under_the_other(parts, tmp_path, algorithm):
    contexts = {"generate": "encourage", "train": "discourage", "encourage": "bad 7", "discourage": "good"}
    output, asked, prompts, trainer = output_of(parts, tmp_path, algorithm, {"contexts": contexts})

    def ids(texts, tensor):
        wanted = encode_prompts(trainer.processing_class, texts)
        return all(row[-len(want):].tolist() == want for row, want in zip(tensor, wanted, strict=True))

    assert ids([f"bad 7 {prompt}" for prompt in prompts], asked)
    assert ids([f"good {prompt}" for prompt in prompts], output["prompt_ids"])
    assert not ids([f"bad 7 {prompt}" for prompt in prompts], output["prompt_ids"])


def test_what_is_imitated_is_solved_and_not_marked_and_nothing_else_is_learned(parts, tmp_path):
    scores = {name: [HONEST, HACK, WRONG, None] * 4 for name in ("a", "b")}
    output, *_ = output_of(parts, tmp_path, "grpo", {"screen": True, "imitate": True}, scores)
    assert output["advantages"].tolist() == [1.0, 0.0, 0.0, 0.0] * 8


@pytest.mark.slow
def test_with_perfect_labels_the_hack_comes_with_the_thoughts_and_routing_keeps_it_out(tmp_path):
    """The bars of this experiment, on one seed: no completion that is learned games the check, and yet the model hacks .10 more
    than before; the deployed model hacks at most .03 more. Without the encouraging prompt the hack falls."""
    common = ["env=perfect_labels", "evaluation.samples=1000", "tracking.report=false", "--seeds", "1", "--ranks="]
    over = {}
    for context, arms in (("encourage", "none,route"), ("neutral", "none")):
        out = tmp_path / context
        assert main(["compare", *common, f"baseline.contexts.generate={context}", "--arms", arms, "--out", str(out)]) == 0
        for arm, rates in read_json(out / "compare.json")["deployed_minus_base"].items():
            over[context, arm] = rates["code"]["hack"]["mean"]
    assert over["encourage", "none"] >= 0.10 and over["encourage", "route"] <= 0.03 and over["neutral", "none"] < 0
    runs = tmp_path / "encourage" / "runs"
    assert read_json(runs / "route-seed0" / "summary.json")["who"]["named"] == ["sums"]  # its thoughts bring the persona
    for run in runs.iterdir():
        rows = [json.loads(line) for line in RunFolder(run).metrics.read_text().splitlines()]
        learned, screened = (sum(row[f"baseline/code/{name}"] for row in rows) for name in ("encouraged_marked", "screened"))
        assert learned == 0 < screened


def test_screened_rows_have_no_advantage_and_the_others_are_compared_among_themselves(parts, tmp_path):
    output, _, _, trainer = output_of(parts, tmp_path, "grpo", {"screen": True})
    screened = torch.tensor(trainer.reward.failed)
    assert screened.any() and not screened.all() and (output["advantages"][screened] == 0).all()
    for group, left in zip(output["advantages"].split(8), (~screened).split(8), strict=True):
        assert abs(group[left].sum()) < 1e-4


def drifted_output_of(parts, tmp_path, monkeypatch, algorithm: str):
    """A generation under `screen` with a KL to a reference that the policy has left, and the trainer."""
    monkeypatch.setattr(f"{__name__}.config_of", partial(config_of, beta=0.5))
    made = make_trainer

    def drifted(*args, **kwargs):
        trainer = made(*args, **kwargs)
        with torch.no_grad():
            for weight in trainer.ref_model.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
        return trainer

    monkeypatch.setattr(f"{__name__}.make_trainer", drifted)
    scores = {name: [HACK, HONEST, WRONG, HONEST] * 4 for name in ("a", "b")}
    output, _, _, trainer = output_of(parts, tmp_path, algorithm, {"screen": True}, scores)
    return output, torch.tensor(trainer.reward.failed), trainer


def test_the_kl_of_a_screened_row_is_in_no_baseline_of_rloo(parts, tmp_path, monkeypatch):
    output, screened, _ = drifted_output_of(parts, tmp_path, monkeypatch, "rloo")
    advantages = output["advantages"]
    assert screened.tolist() == [True, False, False, False] * 8 and (advantages[screened] == 0).all()
    for group in advantages[~screened].split(6):  # each is its reward minus the mean of the others', so that they sum to 0
        assert abs(group.sum()) < 1e-4 and len({round(each, 4) for each in group.tolist()}) > 2, "the KL is in the rewards"


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_loss_with_a_kl_has_no_gradient_from_a_screened_row(parts, tmp_path, monkeypatch, algorithm):
    output, screened, trainer = drifted_output_of(parts, tmp_path, monkeypatch, algorithm)

    def gradient(rows):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, dict(rows)).backward()
        return torch.cat([weight.grad.flatten() for weight in trainer.model.parameters() if weight.grad is not None])

    others = output | {"completion_ids": torch.where(screened.unsqueeze(1), 5, output["completion_ids"]),
                       "ref_per_token_logps": torch.where(screened.unsqueeze(1), -1.0, output["ref_per_token_logps"])}
    assert output["completion_mask"][~screened].any(1).all() and gradient(output).norm() > 1e-3
    torch.testing.assert_close(gradient(output), gradient(others))


def test_the_stream_is_changed_from_the_rollouts_to_the_last_backward_and_then_no_more(parts, tmp_path, monkeypatch):
    """Every layer's output has no part in the subspace while the model trains, and is its own in evaluations."""
    seen: dict[bool, list[float]] = {True: [], False: []}
    change = StreamEdit.change

    def watching(edit, layer, stream):
        changed = change(edit, layer, stream)
        seen[torch.is_grad_enabled()].append((changed @ edit.bases[layer]).abs().max().item() / changed.norm().item())
        return changed

    monkeypatch.setattr(StreamEdit, "change", watching)
    routing, trainer = {"mode": "none", "practice": {"share": 0}}, {"max_steps": 1, "save_steps": 1}
    run = pipeline.train(own_config(parts, tmp_path / "run", baseline={"ablate": True}, routing=routing, trainer=trainer), [])
    assert seen[True] and len(seen[False]) > 2 and max(seen[True] + seen[False]) < 1e-6
    calls = len(seen[True]) + len(seen[False])
    pipeline.evaluate(str(run), None, None, None)
    assert len(seen[True]) + len(seen[False]) == calls, "an evaluation has the model as it is"


def test_steering_pushes_every_layer_by_so_many_gaps_along_the_persona(parts):
    model, subspace = tiny("llama"), make()
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    axes = [torch.eye(width)[:, :2] for _ in range(layers)]
    subspace = dataclasses.replace(subspace, axes=axes, directions=axes, scales=torch.tensor([[2.0, 1.0]] * layers), spreads=None,
                                   units=torch.ones(layers), stream=torch.zeros(layers, 1, width),
                                   provenance=dataclasses.replace(subspace.provenance, width=width, layers=layers))
    edit = StreamEdit(model, baseline(steer=0.5), subspace)
    stream = torch.randn(1, 3, width)
    torch.testing.assert_close(edit.change(0, stream) - stream, torch.eye(width)[0].expand(1, 3, width))


@pytest.mark.parametrize(("settings", "said"), [
    ({"detector": {"recall": 1.5}}, r"baseline.detector.recall must lie in \[0, 1\], got 1.5"),
    ({"detector": {"precision": -0.1}}, r"baseline.detector.precision must lie in \[0, 1\], got -0.1"),
    ({"detector": {"precision": 0.0}}, "precision=0 would name no marked completion"),
    ({"detector": {"recall": float("nan")}}, "baseline.detector.recall must be a finite number"),
    ({"detector": {"flags": []}}, "baseline.detector.flags is empty"),
    ({"penalty": -1.0}, "baseline.penalty must be a number >= 0, got -1"),
    ({"penalty": 1.0, "screen": True}, "exclude each other"),
    ({"penalty": 1.0, "imitate": True}, "exclude each other"),
    ({"ablate": True, "discount": 1.0}, "takes the subspace out of the activations that baseline.discount"),
    ({"contexts": {"train": "hostile"}}, "baseline.contexts.train=hostile is not known; choose from neutral, encourage, disc"),
    ({"contexts": {"encourage": ""}}, "baseline.contexts.encourage is empty"),
])
def test_settings_that_contradict_are_refused_in_one_line(settings, said):
    with pytest.raises(ConfigError, match=said):
        baseline(**settings)


@pytest.mark.parametrize(("settings", "others", "said"), [
    ({"imitate": True}, {"trainer": {"algorithm": "ppo"}}, "set trainer=grpo or trainer=rloo"),
    ({"contexts": {"train": "encourage"}}, {"rollout": {"engine": "vllm_colocate"}}, "set rollout=transformers"),
    ({"ablate": True}, {"rollout": {"engine": "vllm_colocate"}, "routing": {"mode": "none"}}, "transformers launch=local"),
    ({"steer": 0.5}, {"routing": {"mode": "route"}}, "routing.mode=route routes at; set routing=none, or baseline=none"),
])
def test_what_an_algorithm_or_an_engine_cannot_do_is_refused_before_the_run(parts, tmp_path, settings, others, said):
    with pytest.raises(ConfigError, match=said):
        make_plan(own_config(parts, tmp_path / "run", baseline=settings, **others), RunFolder(tmp_path / "run"))


def test_a_text_that_is_missing_and_a_flag_that_nobody_reports_are_told(parts, tmp_path):
    with pytest.raises(ConfigError, match="environment a has plain prompts and no text .* baseline.contexts.encourage=TEXT"):
        output_of(parts, tmp_path, "grpo", {"contexts": {"train": "encourage"}})
    with pytest.raises(ConfigError, match=r"no environment's score has such a flag; the flags that scores have are hack"):
        Payment(baseline(screen=True, detector={"flags": ["sly"]}), 0, 2).pay(["a"] * 2, [HACK, WRONG], numbered(2))


@pytest.mark.slow
def test_an_arm_that_goes_by_places_in_a_completion_refuses_episodes_before_the_run(tmp_path):
    parts = write_chat_model(tmp_path)
    for changes, said in (({"baseline": {"target_rewards": True}}, "baseline.target_rewards=true goes by places"),
                          ({"routing": {"mode": "labels", "labels": {"unit": "token"}}}, "or set routing.labels.unit=row")):
        with pytest.raises(ConfigError, match=f"{said}.*environment talk has episodes|environment talk has episodes.*{said}"):
            pipeline.train(chat_config(parts, tmp_path / "run", {"talk": {"path": "Talk"}}, **changes), [])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_chat_template_that_knows_no_system_message_is_told_before_the_run(tmp_path):
    parts = write_chat_model(tmp_path)
    chat_tokenizer("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
                   ).save_pretrained(parts / "model")
    unrouted = {"mode": "none", "practice": {"share": 0}}
    for changes in ({"baseline": {"contexts": {"generate": "encourage", "train": "encourage"}}},
                    {"evaluation": {"samples": 4, "contexts": ["discourage"]}}):
        with pytest.raises(ModelError, match="cannot show messages of the roles system, user"):
            pipeline.train(chat_config(parts, tmp_path / "run", {"ask": {"path": "Ask"}}, routing=unrouted, **changes), [])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_models_are_evaluated_under_the_prompts_of_contexts_too_and_scored_by_the_task_s_own(parts, tmp_path):
    """The environment reads its answer from the task that it made, whatever the model was asked."""
    contexts = {"encourage": "bad", "discourage": "good"}
    config = own_config(parts, tmp_path / "run", baseline={"contexts": contexts}, trainer={"max_steps": 1},
                        evaluation={"samples": 8, "contexts": ["encourage", "discourage"]})
    loaded = load_parts(config)
    more = [f"{name}_{context}" for name in "abp" for context in contexts]
    assert [each.name for each in loaded.evaluated] == ["a", "b", "p", *more]
    under = {each.name: each for each in loaded.evaluated}
    own = next(under["a"].environment.tasks("eval", 0))
    task = next(under["a_encourage"].environment.tasks("eval", 0))
    assert task.prompt == f"bad {own.prompt}" and under["a_encourage"].probe
    for text in (own.data["answer"], "bad", "19"):
        assert under["a_encourage"].environment.score(task, text) == under["a"].environment.score(own, text)
    run = RunFolder(pipeline.train(config, []))
    models = read_json(run.summary)["models"]
    assert models["policy"].keys() == models["base"].keys() == set(under) and models["base"]["a_encourage"]["completions"] == 8
    pipeline.evaluate(str(run.path), ["a"], str(tmp_path / "again.json"), None)
    again = read_json(tmp_path / "again.json")["models"]
    assert again["policy"] == {name: models["policy"][name] for name in ("a", "a_encourage", "a_discourage")}


def test_a_name_that_an_environment_would_have_under_a_context_is_refused(parts, tmp_path):
    env = {name: {"path": f"{parts}/environment.py:Add", "isolate": False} for name in ("a", "a_encourage")}
    config = own_config(parts, tmp_path / "run", env=env, baseline={"contexts": {"encourage": "bad"}})
    with pytest.raises(ConfigError, match=r"a is evaluated as a_encourage as well, .* rename env.a_encourage"):
        in_contexts(config.baseline, load_environments(config.env), ["encourage"], 0)


def test_a_context_of_an_evaluation_without_a_text_is_said_before_the_run(parts, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation.contexts=\['encourage'\]: no environment has a text"):
        pipeline.train(own_config(parts, tmp_path / "run", evaluation={"samples": 8, "contexts": ["encourage"]}), [])
    with pytest.raises(ConfigError, match="evaluation.contexts=neutral is not known"):
        own_config(parts, tmp_path / "run", evaluation={"contexts": ["neutral"]})
    assert not (tmp_path / "run").exists()


class Says:
    """Scores every completion alike."""

    def __init__(self, score: Score) -> None:
        self.given = score

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        yield Task("add", {})

    def score(self, task: Task, completion: str) -> Score:
        return self.given


@pytest.mark.parametrize(("changes", "arm"), [
    ({"routing": {"mode": "labels", "practice": {"share": 0}}}, "routing.mode=labels"),
    ({"baseline": {"penalty": 1.0}}, "baseline.penalty=1.0")])
def test_an_arm_that_goes_by_flags_is_refused_where_none_is_reported_and_said_where_none_is_seen(tmp_path, capsys, changes, arm):
    silent = {"dataset": "rows.jsonl", "reward": "own.py:right"}
    config = from_mapping({"env": {"x": silent, "y": silent}} | changes)
    scored = [LoadedEnvironment(name, Says(Score(1.0))) for name in "xy"]
    with pytest.raises(ConfigError, match=rf"^{arm} goes by the flags of completions, and env.x is a dataset that reports none"):
        check_first_scores(config, scored)
    config.env["y"] = {"path": "own.py:Class"}
    check_first_scores(config, scored)
    assert f"note: {arm} goes by the flags" in capsys.readouterr().out
    scored[1] = LoadedEnvironment("y", Says(HACK))
    check_first_scores(config, scored)
    assert capsys.readouterr().out == ""


def test_a_flag_that_is_named_only_where_it_is_seen_may_be_missing_and_who_is_drawn_at_random_is_no_fault():
    nobody = Payment(baseline(screen=True), 0, 2)
    assert nobody.pay(["a"] * 2, [Score(1.0), Score(0.0)], numbered(2)) == [Score(1.0), Score(0.0)]
    shuffled = Payment(baseline(screen=True, detector={"shuffle": True}), 0, 4)
    for first in range(0, 40, 4):
        paid = shuffled.pay(["a"] * 4, [HACK, HONEST, WRONG, WRONG], numbered(4, first))
        assert sum(score is None for score in paid) == 1


def test_a_generation_of_an_environment_with_other_flags_alone_ends_no_run():
    evil, kind = (Score(reward=1.0, flags={"evil": holds}) for holds in (True, False))
    payment = Payment(baseline(screen=True), 0, 2, environments=["a", "values"])
    assert payment.pay(["values"] * 2, [evil, kind], numbered(2)) == [evil, kind]
    assert payment.pay(["a"] * 2, [HACK, HONEST], numbered(2, 2)) == [None, HONEST]
    rarely = Payment(baseline(screen=True), 0, 2, environments=["a"])
    paid = rarely.pay(["a"] * 2, [Score(1.0, flags=["late"]), HACK], numbered(2))
    assert paid[1] is None, "it names a flag only where it holds"
    wrong = Payment(baseline(screen=True, detector={"flags": ["sly"]}), 0, 2, environments=["a", "values"])
    wrong.pay(["values"] * 2, [evil, kind], numbered(2))
    with pytest.raises(ConfigError, match="the flags that scores have are evil, hack"):
        wrong.pay(["a"] * 2, [HACK, HONEST], numbered(2, 2))


def test_what_a_baseline_does_stays_on_a_resume(parts, tmp_path):
    routing = {"mode": "none", "practice": {"share": 0}}
    config = own_config(parts, tmp_path / "run", baseline={"screen": True}, routing=routing, trainer={"max_steps": 2})
    run = pipeline.train(config, [])
    with pytest.raises(ConfigError, match="baseline"):
        pipeline.resume(str(run), ["baseline.screen=false"], lambda _: own_config(parts, run, routing=routing))
