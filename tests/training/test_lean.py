"""An update that leaves out rows of advantage 0, padding and the logits of prompts has the gradient that TRL's own has. So does
one after a generation that computed the prompt of each group once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback
from trl import RLOOConfig

from routed_rl import QuarantineConfig, RoutedRLOOTrainer
from routed_rl.training.lean.passes import split_by_length
from routed_rl.training.lean.rows import ROWS, choose, regroup, teaches
from tests.families import FAMILIES, tiny
from tests.library import PLAIN, ROUTE, arguments, rows, texts, trainer
from tests.tiers import tiered


def half(completions: list[Any], environment: list[str], **_: Any) -> list[float]:
    """Every completion of `b` is paid alike, so its groups have no advantage."""
    return [1.0 if name == "b" else float(len(said) % 3) for said, name in zip(texts(completions), environment, strict=True)]


class Gradient(TrainerCallback):
    """Keeps the gradients and the ledgers of an optimizer step, counted from 1, and counts the tokens that the model's layers get
    in updates, and the rows of the first pass, which reads the prompts of the first generation."""

    def __init__(self, step: int = 1) -> None:
        self.found: dict[str, Tensor] = {}
        self.step, self.tokens, self.prompts = step, 0, 0

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        def count(_module: Any, _inputs: Any, output: Any) -> None:
            self.tokens += output.last_hidden_state.shape[:-1].numel() if torch.is_grad_enabled() else 0
            self.prompts = self.prompts or len(output.last_hidden_state)

        model.base_model.register_forward_hook(count, prepend=True)

    def on_pre_optimizer_step(self, _args: Any, state: Any, *_: Any, model: Any, **__: Any) -> None:
        if state.global_step == self.step - 1:
            self.found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
            self.found |= {f"ledger of {name}": module.routed_target.tape.ledger.clone()
                           for name, module in model.named_modules() if hasattr(module, "routed_target")}


def gradients(parts: Path, out: Path, *, lean: bool, pay: Callable[..., list[float]] = half, routing: Any = PLAIN,
              given: dict[str, Any] | None = None, **settings: Any) -> Gradient:
    seen = Gradient(settings.get("max_steps", 1))
    kind = {"kind": RoutedRLOOTrainer} if settings.pop("rloo", False) else {}
    wanted = {"max_steps": 1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_completion_length": 12,
              "save_strategy": "no", "max_grad_norm": 0.0}
    args = arguments(out, **({"kind": RLOOConfig, "beta": 0.0} if kind else {}), **wanted | settings)
    made = trainer(parts, out, args=args, functions=pay, routing=routing, callbacks=[seen], lean=lean, **kind,
                   **({"subspace": None} if routing is PLAIN else {}) | {"dataset": uneven()} | (given or {}))
    made.train()
    return seen


def uneven() -> Any:
    """Prompts of several lengths."""
    return rows(16, prompt=["add 1 2 = " * (1 + place % 3) + f"add {place} 3 =" for place in range(16)])


def check_alike(ours: Gradient, theirs: Gradient, limit: float = 1e-5) -> None:
    assert ours.found.keys() == theirs.found.keys()
    whole = torch.cat([value.flatten() for value in theirs.found.values()]).norm()
    assert whole > 0
    for name, value in theirs.found.items():
        worst = (ours.found[name] - value).norm() / max(value.norm(), 1e-3 * whole)
        assert worst < limit, f"{name}: {worst:.1e}"


SETTINGS: list[dict[str, Any]] = [
    *({"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "vespo", "sapo", "luspo")),
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "steps_per_generation": 4},
    {"loss_type": "dapo", "steps_per_generation": 4, "mask_truncated_completions": True},
    {"loss_type": "dapo", "top_entropy_quantile": 0.5}, {"loss_type": "dapo", "beta": 0.1},
    {"loss_type": "grpo", "entropy_coef": 0.01}, {"rloo": True}]


QUICK = [SETTINGS[place] for place in (0, 1, 9, -1)]


@pytest.mark.parametrize("settings", tiered(SETTINGS, quick=QUICK),
                         ids=lambda settings: "-".join(map(str, settings.values())))
def test_the_gradient_is_trls_own(parts, tmp_path, settings):
    ours, theirs = (gradients(parts, tmp_path / str(lean), lean=lean, **settings) for lean in (True, False))
    check_alike(ours, theirs)
    assert ours.tokens < theirs.tokens and ours.prompts < theirs.prompts


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["bf16", "dropout"])
def test_it_stays_on_with_less_precision_and_with_dropout(parts, tmp_path, changed):
    found = []
    for lean in (True, False):
        model = tiny("llama")
        for module in model.modules():
            if hasattr(module, "attention_dropout") and changed == "dropout":
                module.attention_dropout = 0.1
        found.append(gradients(parts, tmp_path / str(lean), lean=lean, given={"model": model}, bf16=changed == "bf16"))
    assert found[0].tokens < 0.9 * found[1].tokens
    if changed == "bf16":
        check_alike(*found, limit=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_trls_own_in_every_family(parts, tmp_path, family):
    """Families with learned positions, relative ones, sliding windows and experts, whose balance every row would teach."""
    found = []
    for lean in (True, False):
        model = tiny(family)
        balance = {"router_aux_loss_coef": 0.0} if hasattr(model.config, "output_router_logits") else {}
        found.append(gradients(parts, tmp_path / str(lean), lean=lean, given={"model": model}, **balance))
    check_alike(*found)
    assert found[0].tokens < found[1].tokens


def long() -> Any:
    """Prompts of which each is much longer than its completions, in two lengths."""
    return rows(16, prompt=["add 1 2 = " * (24 + place % 2) + f"add {place} 3 =" for place in range(16)])


def test_an_update_of_mode_none_computes_the_prompt_of_a_group_once(parts, tmp_path):
    ours, theirs = (gradients(parts, tmp_path / str(lean), lean=lean, given={"dataset": long()}) for lean in (True, False))
    check_alike(ours, theirs)
    assert 0 < ours.tokens < 0.15 * theirs.tokens


@pytest.mark.slow
def test_a_router_books_what_each_row_does_so_its_rows_share_no_prompt(parts, tmp_path):
    ours, theirs = (gradients(parts, tmp_path / str(lean), lean=lean, routing=ROUTE, given={"dataset": long()})
                    for lean in (True, False))
    check_alike(ours, theirs)
    assert ours.tokens > 0.2 * theirs.tokens


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_computed_once_in_every_family(parts, tmp_path, family):
    found = []
    for lean in (True, False):
        model: Any = tiny(family)
        if family == "gpt2":  # learned positions, fewer than these prompts have
            torch.manual_seed(0)
            model.transformer.wpe = torch.nn.Embedding(256, model.config.n_embd)
        balance = {"router_aux_loss_coef": 0.0} if hasattr(model.config, "output_router_logits") else {}
        found.append(gradients(parts, tmp_path / str(lean), lean=lean, given={"model": model, "dataset": long()}, **balance))
    check_alike(*found)
    assert 0 < found[0].tokens < 0.3 * found[1].tokens


def test_routing_gets_the_same_ledger_and_gradient(parts, tmp_path):
    ours, theirs = (gradients(parts, tmp_path / str(lean), lean=lean, routing=ROUTE) for lean in (True, False))
    check_alike(ours, theirs)
    assert ours.prompts < theirs.prompts
    assert any(name.startswith("ledger") and value.norm() > 0 for name, value in theirs.found.items())


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, QuarantineConfig().max_shift])
def test_a_second_step_on_the_same_completions_is_the_same_but_for_the_sample_that_limits_the_first(parts, tmp_path, limit):
    """The quarantine's step is limited by the shift that it makes at sampled tokens of the rows that ran."""
    quarantine = QuarantineConfig(pace="fast", max_shift=limit)
    routing = dataclasses.replace(ROUTE, quarantine=quarantine)
    found = [gradients(parts, tmp_path / str(lean), lean=lean, routing=routing, max_steps=2, num_iterations=2)
             for lean in (True, False)]
    if limit is None:
        check_alike(*found, limit=1e-4)  # the rounding of the first step's gradient, divided by its size in Adam's step
    else:
        with pytest.raises(AssertionError):
            check_alike(*found, limit=1e-4)
        check_alike(*found, limit=0.1)


def test_a_step_with_nothing_to_learn_runs_one_row_and_every_gradient_is_0(parts, tmp_path):
    def alike(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    found = gradients(parts, tmp_path, lean=True, pay=alike)
    assert all(not value.any() for value in found.found.values()) and found.found
    assert found.tokens <= 60  # one row


def batch(advantages: list[float], completions: list[int], prompt: int = 2) -> dict[str, Any]:
    longest = max(completions)
    mask = torch.arange(longest) < torch.tensor(completions)[:, None]
    return {"advantages": torch.tensor(advantages), "completion_mask": mask.long(), "completion_ids": mask.long(),
            "prompt_mask": torch.ones(len(mask), prompt).long(), "num_items_in_batch": torch.tensor(7), "images": None,
            "names": [f"row {place}" for place in range(len(mask))]}


def test_rows_are_grouped_with_those_that_teach_last_and_by_length():
    batches = [batch([0.0, 1.0], [3, 5]), batch([-1.0, 0.0], [2, 5]), batch([2.0, 1.0], [5, 0])]
    found = regroup(batches)
    assert [len(each["advantages"]) for each in found] == [2, 2, 2]
    assert sorted(name for each in found for name in each["names"]) == sorted(f"row {place}" for place in (0, 1, 0, 1, 0, 1))
    assert [teaches(each).tolist() for each in found] == [[False, False], [False, True], [True, True]]
    assert [each["completion_mask"].sum(1).tolist() for each in found][1:] == [[0, 2], [5, 5]]
    assert all(each["num_items_in_batch"] == 7 and each["images"] is None for each in found)


@pytest.mark.parametrize(("last", "runs"), [(1, [0, 0, 1]), (2, [0, 1, 1]), (3, [1, 1, 1])])
def test_a_micro_batch_without_a_row_that_teaches_runs_one_only_where_it_must(last, runs):
    batches = [batch([0.0, 0.0], [3, 1]) for _ in range(3)]
    choose(batches, last)
    assert [len(each[ROWS]) for each in batches] == runs
    assert batches[-1][ROWS].tolist() == [1]  # its shortest


def test_an_advantage_that_is_not_finite_is_not_left_out():
    assert teaches(batch([float("nan"), 0.0], [1, 1])).tolist() == [True, False]


@pytest.mark.parametrize(("lengths", "cost", "passes"), [
    ([5, 5, 5], 1, [[0, 1, 2]]), ([100, 1, 99, 2], 10, [[1, 3], [2, 0]]),
    ([100, 1, 99, 2], 500, [[1, 3, 2, 0]]), ([7], 0, [[0]])])
def test_a_further_pass_is_made_where_it_saves_more_padding_than_it_costs(lengths, cost, passes):
    assert split_by_length(lengths, cost) == passes
