"""What an extraction holds does not grow with the number of prompts."""

import gc
import json

import pytest
import torch

from routed_rl.config import SubspaceConfig
from routed_rl.extraction import Job, prepare
from tests.test_extraction import WORDS, make_model, make_tokenizer


def held_bytes() -> int:
    """Of all tensors that are alive, each storage once."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def most_held(path: str, **changes) -> int:
    model, most = make_model(), 0

    def look(done: int, total: int) -> None:
        nonlocal most
        # Looking at every object takes a while; the end is when most is held.
        if done > total - 64:
            most = max(most, held_bytes())

    config = SubspaceConfig(**({"prompts": path, "positions": 2, "batch_size": 16, "held_out": 32} | changes))
    prepare(Job(model, make_tokenizer(), config, "tiny", "h", 0, look))()
    return most


def write(folder, count: int, kinds: bool) -> str:
    path = folder / f"{count}{kinds}.jsonl"
    lines = []
    for index in range(count):
        words = " ".join(WORDS[2 + index // 8**place % 8] for place in range(4))
        kind = {"kind": str(index % 3)} if kinds else {}
        lines.append(json.dumps({"positive": f"bad {words} go", "negative": f"good {words} go", **kind}))
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kinds"), [("mean_difference", True), ("mean_difference", False), ("pca", False)])
def test_four_times_the_prompts_hold_no_more(tmp_path, method, kinds):
    # 800 pairs at two positions are more rows than a sketch holds, so that it is full in both.
    few, many = (most_held(write(tmp_path, count, kinds), method=method) for count in (800, 3200))
    rows = 2 * 3 * 2 * 2400 * 32 * 4
    # A few index tensors grow by some bytes a pair; the activations of the further pairs would be 3.7 MB.
    assert many - few < rows / 20


@pytest.mark.slow
def test_what_is_kept_for_held_out_figures_does_grow_with_the_setting(tmp_path):
    path = write(tmp_path, 800, True)
    assert most_held(path, held_out=800) - most_held(path) > 2 * 3 * 2 * 700 * 32 * 4


@pytest.mark.slow
def test_responses_hold_no_more_either(tmp_path):
    few, many = (most_held(write(tmp_path, count, True), tokens="response_mean", response_tokens=2) for count in (100, 400))
    assert many - few < 2 * 3 * 300 * 32 * 4 / 4
