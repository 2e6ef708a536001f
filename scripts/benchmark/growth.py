"""How the cost of an update grows with environments, rank, sequence and group, on a small model without training."""

from __future__ import annotations

import atexit
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmark.repeated import Found, Spread, ratios
from benchmark.workload import Workload

WIDTH, LAYERS, VOCABULARY = 256, 4, 4096
TOKENIZER = "environments/persona_lab/model"
SMALL = Workload("", rows=16, prompt=64, completion=(64, 64), environments=2, rank=8)


def with_environments(count: int) -> Workload:
    """Every environment is in the step, whatever their number."""
    return dataclasses.replace(SMALL, rows=128, prompt=8, completion=(8, 8), environments=count)


def with_rank(rank: int) -> Workload:
    return dataclasses.replace(SMALL, rank=rank)


def with_sequence(tokens: int) -> Workload:
    return dataclasses.replace(SMALL, rows=4, prompt=tokens // 2, completion=(tokens // 2, tokens // 2))


def with_group(size: int) -> Workload:
    """The number of groups stays."""
    return dataclasses.replace(SMALL, rows=2 * size, group=size)


AXES: dict[str, tuple[Callable[[int], Workload], tuple[int, ...]]] = {
    "environments": (with_environments, (1, 2, 4, 16, 64)),
    "rank": (with_rank, (1, 8, 32, 64, 128)),
    "sequence": (with_sequence, (128, 256, 512, 1024, 2048)),
    "group": (with_group, (4, 8, 16, 32)),
}
"""For each axis that is varied, how its workload is made, and its values."""
BARS = {"environments": "<= 1.03 at 64", "rank": "a straight line"}


def growing(axis: str, mode: str, settings: Sequence[str]) -> Callable[[int], Found]:
    """Updates at every value of an axis in this process; the arms are the values."""
    from benchmark.arms import Arm

    workload, values = AXES[axis]
    folder = written_model()
    arms = {f"{value}": Arm(dataclasses.replace(workload(value), path=folder, settings=tuple(settings)), mode)
            for value in values}
    for arm in arms.values():
        arm.step()
    return lambda place: {name: dataclasses.asdict(arms[name].step()) for name in list(arms)[::1 if place % 2 else -1]}


def written_model() -> str:
    """A folder with a small model with random weights, and a tokenizer, which stays until this process ends."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from routed_rl.artifacts import resolve

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    tokenizer = AutoTokenizer.from_pretrained(resolve(TOKENIZER))
    ids: Any = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
                                 num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096, **ids)
                     ).save_pretrained(folder.name)
    tokenizer.save_pretrained(folder.name)
    return folder.name


@dataclasses.dataclass(frozen=True)
class Growth:
    """How a cost grows with a quantity."""

    exponent: float
    """Slope of the logarithm of the cost over the logarithm of the quantity: 0 is constant, 1 proportional."""
    straight: float
    """The largest distance of a median cost from the straight line that fits best, as a share of the cost."""
    ratios: dict[str, Spread]
    """For each value, the cost over that at the first value."""


def growth(found: Sequence[Found], quantity: str = "clock") -> Growth:
    """How the cost grows, from measurements whose arms are the values of an axis."""
    names = list(found[0])
    names.sort(key=int)
    over = {name: Spread.of(ratios(list(found), name, names[0], quantity)) for name in names}
    x, y = np.array([float(name) for name in names]), np.array([over[name].median for name in names])
    slope, start = np.polyfit(x, y, 1)
    return Growth(float(np.polyfit(np.log(x), np.log(y), 1)[0]), float(np.max(np.abs(slope * x + start - y) / y)), over)
