"""A process makes whole groups, because a group's rewards are compared in the process that has its rows."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache
from pathlib import Path

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from trl.trainer.utils import RepeatSampler

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.errors import ConfigError
from routed_rl.pipeline.plan import batch_sentence
from routed_rl.training.generations import micro_batches
from routed_rl.training.plan import make_plan
from tests.parts import own_config

UNREAD = Path("unread")
"""A plan reads no files."""


@cache
def base(world: int) -> Config:
    return own_config(UNREAD, UNREAD, launch={"strategy": "ddp", "processes": world})


def config_of(world: int, rows: int, group: int, **trainer: int) -> Config:
    mine = {"per_device_train_batch_size": rows, "num_generations": group}
    return dataclasses.replace(base(world), trainer=base(world).trainer | mine | trainer)


def shares(world: int, rows: int, steps: int, group: int) -> list[list[int]]:
    """The tasks of the rows that each process gets of the first generation, as TRL and accelerate deal them out."""
    prompts = world * rows * steps // group
    sampler = RepeatSampler(range(prompts), mini_repeat_count=group, batch_size=prompts, repeat_count=steps, shuffle=False)
    dealt = BatchSampler(sampler, batch_size=rows * steps, drop_last=True)
    return [next(iter(BatchSamplerShard(dealt, world, place))) for place in range(world)]


def is_cut(share: list[int], group: int) -> bool:
    return any(len(set(share[start:start + group])) > 1 or len(share[start:start + group]) < group
               for start in range(0, len(share), group))


def test_settings_are_let_through_if_and_only_if_no_process_gets_a_part_of_a_group():
    seen = set[bool]()
    for world, rows, steps, group in itertools.product((1, 2), (2, 3, 4), (1, 2), (2, 4, 6)):
        if world * rows * steps % group:
            continue  # TRL itself refuses it, whatever has which rows
        cut = any(is_cut(share, group) for share in shares(world, rows, steps, group))
        seen.add(cut)
        for said in ({"generation_batch_size": world * rows * steps}, {"steps_per_generation": steps},
                     {"gradient_accumulation_steps": steps}):
            config = config_of(world, rows, group, **said)
            if not cut:
                assert micro_batches(config) == steps
                continue
            with pytest.raises(ConfigError, match=f"^trainer.num_generations={group} does not divide the {rows * steps} "):
                micro_batches(config)
    assert seen == {True, False}


@pytest.mark.parametrize(("trainer", "message"), [
    ({"generation_batch_size": 8}, r"at a time \(trainer.generation_batch_size=8 / processes=2\).* multiple of 16$"),
    ({"generation_batch_size": 12}, "=12 is not divisible by .*=4 x processes=2; set it to a multiple of 8$"),
    ({}, "at a time .*=4 x trainer.gradient_accumulation_steps=1.* multiple of 8, or trainer.gradient_.* multiple of 2$"),
    ({"generation_batch_size": 16, "steps_per_generation": 2}, "leave one out$")])
def test_a_plan_that_would_cut_a_group_is_refused_in_one_line_before_a_process_is_started(trainer, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(config_of(2, 4, 8, **trainer), RunFolder(UNREAD))
    assert "\n" not in str(caught.value)


def test_the_command_that_starts_the_processes_knows_the_share_of_one_of_them():
    said = config_of(2, 4, 8, generation_batch_size=32)
    arguments = make_plan(said, RunFolder(UNREAD)).arguments
    assert (arguments.steps_per_generation, arguments.generation_batch_size) == (4, 16)
    assert batch_sentence(said, arguments).endswith("32 at a time: 4 groups of 8")
