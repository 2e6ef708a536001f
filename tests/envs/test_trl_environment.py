"""TRL's environment classes: the same conversation, tokens, mask and rewards as in TRL's own loop, and the rest refused. TRL's
reward functions on a dataset: the same rewards."""

from __future__ import annotations

import asyncio
import json
import threading
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from accelerate import Accelerator
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from routed_rl.envs import Conversation, EpisodicEnvironment, LoadedEnvironment, Score, Scorer
from routed_rl.envs.adapters.trl_environment import TRLEnvironment
from routed_rl.envs.build import build, find_object
from routed_rl.envs.dataset import DatasetEnvironment
from routed_rl.errors import ConfigError, RoutedRLError
from routed_rl.model.chat import ChatTokens
from routed_rl.rollout import begin, play
from tests.envs.counting import Counting

FILE = str(Path(__file__).parent / "counting.py")
COUNTING = f"{FILE}:Counting"
ROWS = [{"prompt": [{"role": "user", "content": "Count to five."}], "start": start, "target": 5} for start in (0, 2, 3, 4, 1)]
SCRIPT = {
    0: ['<tool_call>\n{"name": "add", "arguments": {"amount": 5}}\n</tool_call>', "Five."],
    2: ['Two calls.\n<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"amount": 2}}\n</tool_call>',
        '<tool_call>\n{"name": "subtract", "arguments": {"amount": 9}}\n</tool_call>', "There."],
    3: ["I would rather not."],
    4: ['<tool_call>\n{"name": "explode", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": {"wrong": 1}}\n</tool_call>', "Oh."],
    1: ['<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'] * 40,
}
"""What the model says, by the row's start; the last row never stops and runs out of tokens."""


@pytest.fixture
def dataset(tmp_path) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Any text, a token a byte, with Qwen3's own chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|im_end|>",
                                        additional_special_tokens=["<|im_start|>"])
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"])
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    return tokenizer


def scripted(tokenizer: Any, ids: list[int]) -> list[int]:
    """The script's next turn after `ids`."""
    text = tokenizer.decode(ids)
    start = int(text.split("You start at ")[1][0]) if "You start at" in text else 0
    said = text.count("<|im_start|>assistant") - 1
    return [*tokenizer(SCRIPT[start][said])["input_ids"], tokenizer.eos_token_id]


def by_trl(tokenizer: Any, out: Path, limit: int) -> dict[str, Any]:
    """TRL's own trainer with the class as its environment_factory; only sampling is replaced."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=1, num_key_value_heads=1, eos_token_id=tokenizer.eos_token_id,
                                         pad_token_id=tokenizer.pad_token_id, max_position_embeddings=4096))
    arguments = GRPOConfig(str(out), num_generations=len(ROWS), per_device_train_batch_size=len(ROWS), use_cpu=True,
                           max_completion_length=limit, report_to="none", bf16=False, scale_rewards="none")
    trainer: Any = GRPOTrainer(model, train_dataset=Dataset.from_list(ROWS), args=arguments, processing_class=tokenizer,  # type: ignore
                               environment_factory=Counting)
    assert trainer.chat_template is None or "tool_call" in trainer.chat_template
    trainer._generate_single_turn = lambda ids, *_, **__: ([scripted(tokenizer, row)[:limit] for row in ids], None)
    output = trainer._generate_and_score_completions([dict(row) for row in ROWS])
    rows = zip(output["completion_ids"], output["completion_mask"].bool(), output["tool_mask"], strict=True)
    return {"template": trainer.chat_template, "rewards": [environment.get_reward() for environment in trainer.environments],
            "prompts": [ids[mask.bool()].tolist() for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)],
            "completions": [(ids[real].tolist(), own[real].tolist()) for ids, real, own in rows]}


def by_us(tokenizer: Any, dataset: str, limit: int) -> list[tuple[Any, Conversation]]:
    environment = TRLEnvironment(COUNTING, dataset=dataset, max_turns=99)
    chat, rows = ChatTokens(tokenizer), []
    for row in ROWS:
        conversation = Conversation(environment, environment._task(row))
        rows.append(begin(conversation, chat))
    play(rows, lambda live: ([scripted(tokenizer, row.ids)[:limit] for row in live], None), chat, limit)
    return [(row, row.conversation) for row in rows]


def test_tokens_mask_and_rewards_are_those_of_trls_own_loop(dataset, tmp_path):
    torch.manual_seed(0)
    theirs = by_trl(byte_tokenizer(), tmp_path / "trl", 500)
    tokenizer = byte_tokenizer()
    if theirs["template"]:
        tokenizer.chat_template = theirs["template"]  # TRL trains tools on its own version of the template
    ours = by_us(tokenizer, dataset, 500)
    assert [row.prompt_ids for row, _ in ours] == theirs["prompts"]
    for (row, _), (ids, mask) in list(zip(ours, theirs["completions"], strict=True))[:4]:
        assert tokenizer.decode(row.completion_ids) == tokenizer.decode(ids)
        assert (row.completion_ids, row.mask) == (ids, mask)
        assert sum(mask) > 0
    assert [talk.outcome.reward for _, talk in ours[:4]] == theirs["rewards"][:4] == [1.0, 1.0, 0.0, 0.0]
    assert [talk.turns for _, talk in ours[:4]] == [2, 3, 1, 3]
    metrics = [talk.outcome.metrics for _, talk in ours[:4]]
    assert [(found["tool_calls"], found["tool_failures"]) for found in metrics] == [(1, 0), (3, 1), (0, 0), (2, 2)]
    # Out of tokens: TRL runs one more tool and forgets its answer, here the answer is not given either.
    row, talk = ours[4]
    assert talk.outcome.flags == {"cut": 1} and len(row.completion_ids) <= 500 and talk.turns > 3


def test_the_tools_a_model_sees_are_those_of_trl(dataset):
    from transformers.utils.chat_template_utils import get_json_schema

    environment = TRLEnvironment(COUNTING, dataset=dataset)
    assert environment.names == ["add", "explode"]
    assert environment.schemas == [get_json_schema(Counting().add), get_json_schema(Counting().explode)]
    assert json.loads(json.dumps(environment.schemas)) == environment.schemas


def test_it_is_an_environment_by_its_path_and_settings_reach_the_class(dataset):
    environment = build("count", "routed_rl.envs.adapters.trl_environment:TRLEnvironment",
                        {"factory": COUNTING, "dataset": dataset, "settings": {"step": 2}, "max_turns": 3})
    assert isinstance(environment, EpisodicEnvironment)
    task = next(task for task in environment.tasks("train", 0) if task.data["row"]["start"] == 3)
    talk = Conversation(environment, task)
    assert talk.messages == [{"role": "user", "content": "Count to five. You start at 3."}]
    assert talk.reply('<tool_call>{"name": "add", "arguments": {"amount": 1}}</tool_call>') == [
        {"role": "tool", "name": "add", "content": "It shows 5."}]
    assert talk.reply("done") == [] and talk.outcome == Score(1.0, 1.0, metrics={"tool_calls": 1, "tool_failures": 0, "turns": 2})


def test_rows_are_split_the_same_for_the_same_seed_and_shuffled(tmp_path):
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"prompt": "Count.", "start": n}) + "\n" for n in range(50)))
    environment = TRLEnvironment(COUNTING, dataset=str(file))

    def starts(split: str, seed: int) -> list[int]:
        return [task.data["row"]["start"] for task in environment.tasks(split, seed)]

    assert starts("train", 0) == starts("train", 0) != starts("train", 1)
    assert len(starts("eval", 0)) == 10 and sorted(starts("train", 0) + starts("eval", 0)) == list(range(50))


def test_an_environment_that_owns_its_data_gets_a_seed_that_a_group_shares():
    environment = TRLEnvironment(f"{FILE}:Dealing", prompt="Go. ")
    train, held = (list(islice(environment.tasks(split, 0), 20)) for split in ("train", "eval"))
    assert not {t.data["row"]["seed"] for t in train} & {t.data["row"]["seed"] for t in held}
    for task in train:
        first, second = Conversation(environment, task), Conversation(environment, task)
        assert first.messages == second.messages and first.messages[-1]["content"].startswith("Go. Reach ")
    with pytest.raises(ConfigError, match=r"reset takes no seed.*dataset=FILE.jsonl"):
        TRLEnvironment(COUNTING)


def test_open_episodes_do_not_share_an_instance(dataset):
    environment = TRLEnvironment(COUNTING, dataset=dataset)
    task = environment._task(ROWS[0])
    talks = [Conversation(environment, task) for _ in range(3)]
    talks[0].reply('<tool_call>{"name": "add", "arguments": {"amount": 5}}</tool_call>')
    for talk in talks:
        talk.reply("done")
    assert [talk.outcome.reward for talk in talks] == [1.0, 0.0, 0.0]
    assert len(environment.idle) == 3 and Conversation(environment, task).outcome is None


BEYOND = '''
class Plain:
    def reset(self, **kwargs): return None
class Waits(Plain):
    async def look(self): return "x"
    def get_reward(self): return 1.0
class Undescribed(Plain):
    def look(self, where): return "x"
    def get_reward(self): return 1.0
class Pictures(Plain):
    def reset(self, **kwargs): return [{"type": "image", "image": 1}]
    def get_reward(self): return 1.0
class Silent(Plain):
    def get_reward(self): return None
'''


@pytest.mark.parametrize(("name", "message"), [
    ("Plain", "has no get_reward.*reward functions beside the environment are not covered"),
    ("Waits", r"async methods \(look\), which are not covered"),
    ("Undescribed", "the tool look cannot be described to the model"),
    ("Missing", "has no class Missing")])
def test_what_is_not_covered_is_refused_in_one_line(tmp_path, dataset, name, message):
    (tmp_path / "beyond.py").write_text(BEYOND)
    with pytest.raises(RoutedRLError, match=message) as caught:
        build("x", "routed_rl.envs.adapters.trl_environment:TRLEnvironment",
              {"factory": f"{tmp_path}/beyond.py:{name}", "dataset": dataset})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("Pictures", "only text is covered, no images"), ("Silent", "TypeError")])
def test_what_shows_only_in_an_episode_is_counted_as_a_failure(tmp_path, dataset, name, message):
    (tmp_path / "beyond.py").write_text(BEYOND)
    environment = TRLEnvironment(f"{tmp_path}/beyond.py:{name}", dataset=dataset)
    talk = Conversation(environment, environment._task(ROWS[0]))
    talk.reply("done")
    scorer = Scorer({"x": LoadedEnvironment("x", environment)}, 1.0)
    assert scorer.count("x", talk.outcome) is None and message in scorer.last_error["x"]


FUNCTIONS = '''
def right(completions, answer, **kwargs):
    return [float(said == wanted) for said, wanted in zip(completions, answer, strict=True)]
def never(completions, **kwargs):
    return [None] * len(completions)
def short(prompts, completions, **kwargs):
    return [len(prompt) / 7 - len(said) if said else None for prompt, said in zip(prompts, completions, strict=True)]
async def later(completions, **kwargs):
    return [float(said.count("o")) for said in completions]
'''


def test_a_dataset_pays_what_trl_itself_makes_of_its_reward_functions(tmp_path):
    """By TRL's own method, called with the whole batch, and its weighted sum."""
    (tmp_path / "own.py").write_text(FUNCTIONS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": "p" * n, "answer": str(n)}) + "\n" for n in range(1, 9)))
    names, weights = ["right", "never", "short", "later"], [2.0, 5.0, 0.5, 1.0]
    paths = [f"{tmp_path}/own.py:{name}" for name in names]
    environment = DatasetEnvironment(str(tmp_path / "rows.jsonl"), paths, weights)
    tasks = list(environment.tasks("train", 0))[:4]
    said = [tasks[0].data["answer"], "no", "", "oooo"]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    trainer: Any = trl.GRPOTrainer.__new__(trl.GRPOTrainer)
    vars(trainer).update(
        accelerator=Accelerator(cpu=True), state=SimpleNamespace(global_step=0), environments=None, reward_func_names=names,
        reward_funcs=[find_object("reward", path) for path in paths], reward_processing_classes=[None] * 4, async_loop=loop,
        args=SimpleNamespace(report_to=[]))
    rows = [dict(task.data) | {"prompt": task.prompt} for task in tasks]
    theirs = trainer._calculate_rewards(rows, [task.prompt for task in tasks], said, [[1]] * 4)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    ours = [environment.score(*pair).reward for pair in zip(tasks, said, strict=True)]
    assert ours == pytest.approx((theirs * torch.tensor(weights)).nansum(1).tolist())
    assert len(set(ours)) == 4
