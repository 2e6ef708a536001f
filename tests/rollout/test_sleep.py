"""An engine in the trainer's process that sleeps while a step trains (vLLM itself sleeps on GPUs only)."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Timer
from types import SimpleNamespace

import pytest

from routed_rl.rollout import Lora, PolicyWeights, Sampling, Served, parts_of
from routed_rl.rollout.colocate import ColocatedEngine
from routed_rl.training.callback import RoutingCallback
from tests.rollout.engines import CopyEngine
from tests.routing.test_labels import labelled


class Sleeper(CopyEngine):
    """Refuses whatever is asked of it while it sleeps."""

    asleep = False

    def sleep(self) -> None:
        self.asleep = True

    def wake(self) -> None:
        self.asleep = False

    def load(self, weights) -> None:
        assert not self.asleep
        super().load(weights)

    def load_adapter(self, adapter, tensors) -> None:
        assert not self.asleep
        super().load_adapter(adapter, tensors)

    def _asked(self, adapter):
        assert not self.asleep
        return super()._asked(adapter)


@pytest.mark.parametrize("room", [Lora(8, []), None])
@pytest.mark.parametrize("ask", [
    lambda served: served.sync(), lambda served: served.show(deployed=True), lambda served: served.logprobs([[3, 4, 5]]),
    lambda served: served.complete([[3, 4]], Sampling(0.0, 1, []), deployed=True),
])
def test_an_engine_wakes_for_whatever_is_asked_of_it(ask, room):
    model, router, _ = labelled("llama")
    served = Served(Sleeper(model, room), PolicyWeights(model, parts_of(router.quarantine)))
    served.sync()
    served.rest()
    assert served.engine.asleep
    ask(served)
    assert not served.engine.asleep


def test_an_engine_that_an_evaluation_has_woken_sleeps_again_before_the_next_step():
    model, router, _ = labelled("llama")
    served = Served(Sleeper(model, None), PolicyWeights(model, parts_of(router.quarantine)))
    served.sync()
    trainer = SimpleNamespace(edit=None, served=served, begin_routing=lambda step: None)
    RoutingCallback(trainer).on_step_begin(None, SimpleNamespace(global_step=3), None)
    assert served.engine.asleep


@pytest.mark.parametrize("wanted", [True, False])
def test_vllm_is_put_to_sleep_once_with_its_weights_kept_and_only_if_it_was_asked_for(wanted):
    calls: list = []
    engine = ColocatedEngine.__new__(ColocatedEngine)
    engine.llm = SimpleNamespace(sleep=lambda level: calls.append(("sleep", level)), wake_up=lambda: calls.append("wake"))
    engine._sleeps, engine._asleep = wanted, False
    for call in (engine.wake, engine.sleep, engine.sleep, engine.wake, engine.wake):
        call()
    assert calls == ([("sleep", 1), "wake"] if wanted else [])


def test_the_time_that_is_spent_on_a_pending_request_is_counted_wherever_it_is_waited_for():
    model, router, _ = labelled("llama")
    served = Served(CopyEngine(model, Lora(8, [])), PolicyWeights(model, parts_of(router.quarantine)))
    served.pending = Future()
    Timer(0.1, served.pending.set_result, [None]).start()
    served.sync()
    assert 0.05 < served.waited_s < 5 and served.pending is None
