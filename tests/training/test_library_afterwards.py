"""What a script does to a library trainer, or to its model, after the trainer was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from routed_rl import SubspaceConfig
from tests.library import PLAIN, arguments, subspace_of, trainer
from tests.parts import write_parts

READERS = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
WRITERS = LoraConfig(r=4, target_modules="all-linear")
IDS = torch.tensor([[6, 8, 9, 5], [6, 10, 11, 5]])


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def subspace(parts) -> Any:
    return subspace_of(parts)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.float()


@torch.no_grad()
def fill(trainer: Any) -> None:
    """A quarantine, and in a LoRA factors B, as if they had learned."""
    for target in trainer.quarantine.targets:
        target.coefficients.fill_(0.05)
    for name, parameter in trainer.model.named_parameters():
        if ".lora_B." in name:
            parameter.fill_(0.02)


@pytest.mark.slow
def test_a_run_that_goes_on_leaves_the_subspace_of_the_script_as_it_is(parts, tmp_path):
    def made(found: Any, steps: int) -> Any:
        return trainer(parts, tmp_path / "run", subspace=found, bases=SubspaceConfig(layout="per_layer"),
                       args=arguments(tmp_path / "run", max_steps=steps))

    made(subspace_of(parts), 1).train()
    turned = subspace_of(parts)
    for basis in turned.directions:
        basis.neg_()  # spans the same
    before = [basis.clone() for basis in turned.directions]
    made(turned, 2).train(resume_from_checkpoint=True)
    assert all(basis.equal(was) for basis, was in zip(turned.directions, before, strict=True))


@pytest.mark.slow
def test_noise_on_the_embeddings_switches_lean_off(parts, tmp_path):
    """NEFTune's noise is smaller in a longer row, and padding counts."""
    made = [trainer(parts, tmp_path / name, routing=PLAIN, subspace=None, args=arguments(tmp_path / name, **changes))
            for name, changes in {"noisy": {"neftune_noise_alpha": 5.0}, "silent": {}}.items()]
    assert [each.lean for each in made] == [False, True]
