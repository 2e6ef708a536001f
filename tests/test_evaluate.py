"""Evaluation: the same tasks and random numbers for every model, failures counted, nothing left behind."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from routed_rl.config import EvaluationConfig
from routed_rl.envs import LoadedEnvironment, Score, Task
from routed_rl.errors import ModelError, TaskError
from routed_rl.evaluate import Answer, evaluate, generate_ids
from routed_rl.linalg import random_basis
from routed_rl.model.prompts import encode_prompts
from routed_rl.model.targets import find_writers
from routed_rl.ranks import RANKS
from routed_rl.rollout import PolicyWeights, Served
from routed_rl.routing import RoutingContext
from routed_rl.routing.quarantine import Quarantine
from routed_rl.routing.target import Target
from tests import builders
from tests.builders import Run
from tests.ranks import on_ranks
from tests.rollout.engines import CopyEngine

WORDS = [f"w{number}" for number in range(20)]
CONFIG = EvaluationConfig(samples=60, batch_size=25)
LENIENT = EvaluationConfig(samples=60, batch_size=25, max_failures=0.5)


class Echo:
    """Remembers what it scored; fails or flags by the completion."""

    def __init__(self, fail: str = "", nan: bool = False) -> None:
        self.fail, self.nan, self.seen = fail, nan, list[tuple[str, str]]()

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        assert split == "eval"
        for number in range(40):  # fewer than samples: the stream starts over
            yield Task(" ".join(WORDS[(seed + number + offset) % 20] for offset in range(1 + number % 3)))

    def score(self, task: Task, completion: str) -> Score:
        self.seen.append((str(task.prompt), completion))
        if self.fail and self.fail in completion.split():
            if self.nan:
                return Score(float("nan"))
            raise ValueError("no parse")
        first = completion.split()[:1]
        return Score(1.0, solve=0.5, flags=["hack"] if first == ["w1"] else [],
                     metrics={"length": len(completion.split())} if first == ["w2"] else {})


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
                                   padding_side="left")


def tiny(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                         num_attention_heads=2, num_key_value_heads=2, bos_token_id=None, eos_token_id=1,
                                         pad_token_id=0))
    return model.eval()


def measure(model: LlamaForCausalLM, *environments: Echo, config: EvaluationConfig = CONFIG, seed: int = 0,
            **options: Any) -> dict[str, dict[str, float]]:
    loaded = [LoadedEnvironment(f"env{index}", environment) for index, environment in enumerate(environments)]
    return evaluate(model, tokenizer(), loaded, config, seed=seed, max_new_tokens=5, **options)


def test_answers_are_kept_of_the_same_first_tasks_and_change_no_figure() -> None:
    config, told = EvaluationConfig(samples=60, batch_size=25, answers=30), list[dict[str, list[Answer]]]()
    plain, kept = Echo(fail="w3"), Echo(fail="w3")
    lenient = {"max_failures": 0.5}
    means = measure(tiny(), plain, config=dataclasses.replace(config, answers=0, **lenient))
    assert measure(tiny(), kept, config=dataclasses.replace(config, **lenient), told=told.append) == means
    assert kept.seen == plain.seen
    first = told[0]["env0"]
    assert [(each.prompt, each.completion) for each in first] == kept.seen[:30]
    assert [each.score is None for each in first] == ["w3" in text.split() for _, text in kept.seen[:30]]


def shared() -> tuple[dict[str, dict[str, float]], int, torch.Tensor]:
    """As one of two processes: what it returns, how many completions it scored itself, and its next random number."""
    dist.init_process_group("gloo")
    first, second, model = Echo(fail="w3"), Echo(), tiny()
    torch.manual_seed(4)
    means = measure(model, first, second, config=LENIENT, share=True)
    return means, len(first.seen) + len(second.seen), torch.rand(1)


@pytest.mark.slow
def test_processes_that_share_the_work_make_it_once_and_all_know_the_whole() -> None:
    alone = measure(tiny(), Echo(fail="w3"), Echo(), config=LENIENT)
    assert alone["env0"]["failures"] > 0
    ranks = on_ranks(shared)
    assert [means for means, _, _ in ranks] == [alone, alone]
    assert [count for _, count, _ in ranks] == [60, 60]
    torch.manual_seed(4)
    assert ranks[0][2] == ranks[1][2] == torch.rand(1)


class Together(CopyEngine):
    """Weights are loaded while every process waits, as a server's are."""

    def load(self, weights) -> None:
        super().load(weights)
        RANKS.wait()


def served_to_few() -> list[int]:
    """As one of two processes, with a batch for the first alone: how many weights came with each push."""
    dist.init_process_group("gloo")
    run = Run(builders.tiny("llama"))
    engine = Together(run.model)
    served = Served(engine, PolicyWeights(run.model, run.targets))
    for deployed in (True, False):
        measure(run.model, Echo(), config=EvaluationConfig(samples=4), share=True, served=served, deployed=deployed)
    return [len(names) for names in engine.loads]


@pytest.mark.slow
def test_a_process_without_a_batch_takes_part_when_a_server_is_told_another_model() -> None:
    first, second = on_ranks(served_to_few)
    assert first == second and len(first) == 2


def test_evaluating_twice_gives_the_same_whatever_was_drawn_in_between() -> None:
    first, again, other = Echo(), Echo(), Echo()
    measure(tiny(), first)
    torch.rand(7)
    measure(tiny(), again)
    measure(tiny(), other, seed=1)
    assert first.seen == again.seen
    assert first.seen != other.seen


def test_every_model_gets_the_same_prompts_and_the_same_random_numbers() -> None:
    one, two, alike = Echo(), Echo(), Echo()
    measure(tiny(0), one)
    measure(tiny(1), two)
    nearly = tiny(0)
    for parameter in nearly.parameters():
        parameter.data.mul_(1 + 1e-6)
    measure(nearly, alike)
    assert [prompt for prompt, _ in one.seen] == [prompt for prompt, _ in two.seen]
    assert [text for _, text in one.seen] != [text for _, text in two.seen]
    # The same numbers drawn: a model that is nearly the same says the same, in every batch.
    assert one.seen == alike.seen


def test_what_an_environment_gets_does_not_depend_on_the_others() -> None:
    alone, beside = Echo(), Echo()
    measure(tiny(), alone)
    measure(tiny(), beside, Echo())
    assert alone.seen == beside.seen


def test_random_state_and_training_mode_are_left_alone() -> None:
    model = tiny().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.random.get_rng_state()
    measure(model, Echo())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes


def test_flags_average_over_all_scores_and_metrics_over_those_that_have_them() -> None:
    environment = Echo()
    found = measure(tiny(), environment)["env0"]
    firsts = [text.split()[:1] for _, text in environment.seen]
    hacks, counted = firsts.count(["w1"]), [len(t.split()) for _, t in environment.seen if t.split()[:1] == ["w2"]]
    assert hacks
    assert counted
    assert found == pytest.approx({"reward": 1.0, "solve": 0.5, "hack": hacks / 60, "length": sum(counted) / len(counted),
                                   "completions": 60, "failures": 0})


def test_an_evaluated_environment_knows_its_flags_and_a_metric_is_none() -> None:
    loaded = LoadedEnvironment("env0", Echo())
    settings = EvaluationConfig(samples=60, batch_size=25)
    found = evaluate(tiny(), tokenizer(), [loaded], settings, seed=0, max_new_tokens=4)["env0"]
    assert loaded.flags == {"hack"} and {"hack", "length"} <= found.keys()


@pytest.mark.parametrize("nan", [False, True])
def test_a_failure_is_counted_and_is_never_reward_0(nan: bool) -> None:
    environment = Echo(fail="w3", nan=nan)
    found = measure(tiny(), environment, config=EvaluationConfig(samples=60, batch_size=25, max_failures=0.9))["env0"]
    failures = sum("w3" in text.split() for _, text in environment.seen)
    assert failures
    assert (found["failures"], found["completions"], found["reward"]) == (failures, 60, 1.0)


def test_too_many_failures_are_fatal_and_name_the_environment() -> None:
    with pytest.raises(TaskError, match=r"environment env0 failed to score .* last: .*raised ValueError: no parse"):
        measure(tiny(), Echo(fail="w3"))


def test_the_ablated_policy_is_evaluated_as_the_deployed_model() -> None:
    plain, routed = tiny(), tiny()
    context = RoutingContext()
    basis = random_basis(16, 3, torch.Generator().manual_seed(0))
    targets = [Target(writer.name, writer.layer, writer.module, basis, 1.0, context, 1) for writer in find_writers(routed)]
    quarantine = Quarantine(targets, ["env0"], context)
    for target in targets:
        target.coefficients.normal_(std=3.0)
    deployed, ablated, policy = Echo(), Echo(), Echo()
    measure(plain, deployed)
    measure(routed, policy)
    with quarantine.ablated():
        measure(routed, ablated)
    assert ablated.seen == deployed.seen
    assert policy.seen != deployed.seen


def test_progress_counts_every_completion_once() -> None:
    calls: list[tuple[int, int]] = []
    measure(tiny(), Echo(), Echo(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 120) for done in (25, 50, 60, 85, 110, 120)]
    assert measure(tiny(), Echo(), config=EvaluationConfig(samples=0)) == {}


def test_temperature_0_is_greedy() -> None:
    environment = Echo()
    measure(tiny(), environment, config=EvaluationConfig(samples=80, temperature=0))
    assert environment.seen[:40] == measure_greedy(environment, 40)


def measure_greedy(environment: Echo, count: int) -> list[tuple[str, str]]:
    """Token by token, one prompt at a time."""
    model, words, found = tiny(), tokenizer(), []
    for prompt in itertools.islice((prompt for prompt, _ in environment.seen), count):
        ids = words(prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + 5 and (len(ids) == start or ids[-1] != 1):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        found.append((prompt, words.decode(ids[start:], skip_special_tokens=True)))
    return found


def test_prompts_and_completions_are_those_of_trl(tmp_path: Any) -> None:
    """TRL's own trainer, asked to generate from the same state, says the same words."""
    model, words = tiny(), tokenizer()
    prompts = [" ".join(WORDS[start:start + length]) for start, length in [(0, 1), (3, 4), (8, 2), (12, 3)]]
    heard: list[str] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        heard.extend(completions)
        return [0.0] * len(completions)

    arguments = GRPOConfig(str(tmp_path), num_generations=2, per_device_train_batch_size=4, max_completion_length=5,
                           use_cpu=True, temperature=1.0, report_to="none", bf16=False)
    # What it makes prompts and completions of is private to it.
    trainer: Any = GRPOTrainer(model, reward, arguments, train_dataset=_dataset(prompts), processing_class=words)  # pyright: ignore
    encoded, *_ = trainer._tokenize_prompts(prompts)
    assert encode_prompts(words, list(prompts)) == [list(ids) for ids in encoded]
    torch.manual_seed(5)
    trainer.model.train()
    trainer._generate_and_score_completions([{"prompt": prompt} for prompt in prompts])
    torch.manual_seed(5)
    assert words.batch_decode(generate_ids(model, words, encoded, 1.0, 5), skip_special_tokens=True) == heard


def _dataset(prompts: list[str]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": prompt} for prompt in prompts])


def test_messages_go_through_the_chat_template() -> None:
    words = tokenizer()
    chat = [{"role": "user", "content": "w5 w6"}]
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompts(words, [chat])
    words.chat_template = ("{% for m in messages %}w0 {{ m.content }} {% endfor %}"
                           "{% if add_generation_prompt %}w9{% endif %}")
    assert encode_prompts(words, ["w1 w2", chat]) == [words("w1 w2")["input_ids"], words("w0 w5 w6 w9")["input_ids"]]
