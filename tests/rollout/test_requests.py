"""How prompts become requests to servers, and that a server that does not answer keeps nobody waiting. The servers are stand-ins
for their clients."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from routed_rl.errors import RolloutError
from routed_rl.rollout import Sampling
from routed_rl.rollout.colocate import ColocatedEngine
from routed_rl.rollout.server import ServerEngine
from routed_rl.training.vllm_rollouts import PolicyGeneration


class Client:
    """Answers each prompt with as many copies of its first token as it may have."""

    def __init__(self, max_length: int) -> None:
        self.max_length, self.own, self.calls = max_length, "m", list[list[list[int]]]()

    def generate(self, prompts, max_tokens):
        self.calls.append(prompts)
        return {"prompt_ids": prompts, "completion_ids": [ids[:1] * max_tokens for ids in prompts]}

    def complete(self, prompts, model, settings):
        return [{"token_ids": ids[:1] * settings["max_tokens"]} for ids in prompts]


def engine_of(*clients) -> ServerEngine:
    return ServerEngine(list(clients), "float32", None, None, Path())


def test_a_long_conversation_does_not_shorten_the_turns_of_the_others():
    long, short = [7] * 9, [5, 5]
    client = Client(12)
    found = engine_of(client).generate([short, long, [6]], max_tokens=8)
    assert found["completion_ids"] == [[5] * 8, [7] * 3, [6] * 8] and client.calls == [[short, [6]], [long]]


def test_prompts_are_divided_evenly_and_answers_come_in_their_order():
    clients = [Client(64), Client(64)]
    assert engine_of(*clients).generate([[token] for token in range(5)], max_tokens=1)["prompt_ids"] == [
        [token] for token in range(5)]
    assert [client.calls for client in clients] == [[[[0], [1], [2]]], [[[3], [4]]]]


@pytest.mark.parametrize("ask", [lambda engine: engine.generate([[5], [7] * 12], max_tokens=8),
                                 lambda engine: engine.complete([[5], [7] * 12], Sampling(0.0, 8, []), None)])
def test_a_prompt_that_leaves_no_room_says_which_setting_to_raise(ask):
    with pytest.raises(RolloutError, match=r"a prompt of 12 tokens leaves no room .* 12 tokens .* raise rollout.max_length"):
        ask(engine_of(Client(12)))


def test_a_prompt_without_room_in_vllm_in_this_process_is_refused_alike_by_evaluation_and_training():
    engine = ColocatedEngine.__new__(ColocatedEngine)
    settings = SimpleNamespace(model_config=SimpleNamespace(max_model_len=12))
    engine.llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=settings))
    generation = PolicyGeneration.__new__(PolicyGeneration)
    generation.mode, generation.served = "colocate", SimpleNamespace(engine=engine, show=lambda deployed: None)
    generation.trainer = SimpleNamespace(practice=None, rolling=None, ahead=None)
    with pytest.raises(RolloutError, match=r"a prompt of 12 tokens leaves no room .* 12 tokens .* raise rollout.max_length"):
        generation.generate([[5], [7] * 12], None, 1)
    engine.require_room([[5], [7] * 11])
    with pytest.raises(RolloutError, match="leaves no room"):
        engine.require_room([[7] * 13])


def by_groups(engine):
    """As a trainer asks it, group by group."""
    generation = PolicyGeneration.__new__(PolicyGeneration)
    for name in ("repetition_penalty", "temperature", "top_p", "top_k", "min_p", "logprobs", "structured_outputs_regex",
                 "generation_kwargs"):
        setattr(generation, name, None)
    generation.vllm_client, generation.max_completion_length, generation.trainer = engine, 1, None
    generation._ask_server([[5], [6]], None, [0, 1])


@pytest.mark.parametrize("ask", [lambda engine: engine.generate([[5], [6]], max_tokens=1), by_groups,
                                 lambda engine: engine.complete([[5], [6]], Sampling(0.0, 1, []), None)])
def test_ctrl_c_and_the_end_of_the_program_do_not_wait_for_an_answer(ask, ctrl_c):
    gate, daemons = threading.Event(), list[bool]()

    def hang(*_, **__):
        daemons.append(threading.current_thread().daemon)
        gate.wait(2)

    begin = time.monotonic()
    ctrl_c(0.05)
    with pytest.raises(KeyboardInterrupt):
        ask(engine_of(SimpleNamespace(max_length=64, own="m", generate=hang, complete=hang)))
    assert time.monotonic() - begin < 1 and all(daemons)
    gate.set()
