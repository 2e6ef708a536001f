"""A server that does not answer keeps nobody waiting. The servers are stand-ins for their clients."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from routed_rl.rollout import Sampling
from routed_rl.rollout.server import ServerEngine
from routed_rl.training.vllm_rollouts import PolicyGeneration


def engine_of(*clients) -> ServerEngine:
    return ServerEngine(list(clients), "float32", None, None, Path())


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
def test_ctrl_c_and_the_end_of_the_program_do_not_wait_for_an_answer(ask):
    gate, daemons = threading.Event(), list[bool]()

    def hang(*_, **__):
        daemons.append(threading.current_thread().daemon)
        gate.wait(2)

    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ask(engine_of(SimpleNamespace(max_length=64, model="m", generate=hang, complete=hang)))
    assert time.monotonic() - begin < 1 and all(daemons)
    gate.set()
