"""A quarantine by labels is served like one at a subspace: added to the weights, or behind the factors of a LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest

from routed_rl.config import ParityConfig
from routed_rl.errors import ParityError, RolloutError
from routed_rl.pipeline.build import load_parts, make_router
from routed_rl.pipeline.engines import adapters_for, check_served
from routed_rl.rollout import Lora, ParityCheck, PolicyAdapters, PolicyWeights, Served, fixed_sequences, parts_of
from tests.builders import VOCAB, tiny
from tests.parts import own_config, write_parts
from tests.rollout.engines import CopyEngine
from tests.routing.test_labels import labelled

SEQUENCES = fixed_sequences([[3, 4, 5], [6, 7]], VOCAB, 30)


@pytest.mark.parametrize(("family", "lora", "room"), [("llama", False, Lora(8, [])), ("qwen2", False, Lora(8, [])),
                                                      ("gpt2", False, None), ("llama", True, Lora(8, [], 2))])
def test_the_engine_is_the_trainer_with_the_labels_quarantine_and_without(family, lora, room):
    model, router, _ = labelled(family, lora=lora)
    served = Served(CopyEngine(model, room), (PolicyAdapters if lora else PolicyWeights)(model, parts_of(router.quarantine)))
    check = ParityCheck(served, model, SEQUENCES, ParityConfig(), router.quarantine.ablated)
    if not lora:  # adapters are loaded when they are first asked for
        with pytest.raises(ParityError, match="of the policy"):
            check.run(0)
    for scale in (1.0, 0.5):
        with router.quarantine.scaled(scale):
            served.sync()
            assert check._compare("policy", 1) < 1e-5
    served.sync()
    assert max(check.run(1).values()) < 1e-5
    assert served.logprobs(SEQUENCES) != served.logprobs(SEQUENCES, deployed=True)


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "rank", "count"), [({}, 3, 1), ({"kind": "lora", "r": 6}, 9, 2)])
def test_an_engine_is_started_with_room_for_it(tmp_path, adapter, rank, count):
    parts = write_parts(tmp_path)
    changes = {"routing": {"mode": "labels", "practice": {"share": 0}, "labels": {"rank": 3}}, "subspace": {},
               "rollout": {"engine": "vllm_colocate"}, "model": {"path": f"{parts}/model", "adapter": adapter}}
    loaded = load_parts(own_config(parts, "unused", **changes))
    check_served(loaded)
    wanted, quarantine = adapters_for(loaded, None), make_router(loaded, None).quarantine
    assert wanted == Lora(8 if rank == 3 else 16, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
                          count)
    models = (PolicyAdapters if adapter else PolicyWeights)(loaded.model, parts_of(quarantine))
    tensors = models.tensors(models.adapter(deployed=not adapter))
    assert max(min(value.shape) for value in tensors.values()) == rank


@pytest.mark.slow
@pytest.mark.parametrize(("family", "wanted"), [("gpt2", None), ("mixtral", "mixture of experts")])
def test_where_vllm_has_no_adapter_for_it_weights_are_exchanged_and_a_mixture_is_refused(tmp_path, family, wanted):
    parts = write_parts(tmp_path / "parts")
    for file in Path(parts / "model").glob("model*"):
        file.unlink()
    tiny(family).save_pretrained(parts / "model")
    changes = {"routing": {"mode": "labels", "practice": {"share": 0}}, "subspace": {}, "rollout": {"engine": "vllm_colocate"}}
    loaded = load_parts(own_config(parts, "unused", **changes))
    if wanted is None:
        assert adapters_for(loaded, None) is None
        return
    with pytest.raises(RolloutError, match=wanted):
        check_served(loaded)
