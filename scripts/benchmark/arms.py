"""Trainers whose completions are simulated: TRL's own, and ours in a mode of routing, on the same rows. Several of them fit into
one process, so that their updates can alternate."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any, cast

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from benchmark.workload import CONTROL_EVERY, PLAIN, Cost, Paying, Workload
from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.envs import LoadedEnvironment
from routed_rl.linalg import random_basis
from routed_rl.model.adapter import attach
from routed_rl.model.load import load_model, load_tokenizer
from routed_rl.model.targets import find_writers, freeze
from routed_rl.monitor import Monitor
from routed_rl.pipeline.build import Parts, make_router
from routed_rl.subspace import Provenance, Subspace
from routed_rl.training.build import build_trainer
from routed_rl.training.plan import make_plan
from routed_rl.training.watch import Watch


class Arm:
    """One trainer and its rows; `step` is one update."""

    def __init__(self, workload: Workload, mode: str, completions: int = 0) -> None:
        """`completions`: `monitor.completions`; above 0 a monitor judges the steps."""
        self.folder, config = tempfile.TemporaryDirectory(), workload.config(mode, completions)
        make = plain_trainer if mode == PLAIN else routed_trainer
        self.trainer: Any = make(config, workload, RunFolder(self.folder.name))
        self.trainer.current_gradient_accumulation_steps = 1
        self.model, self.optimizer = self.trainer.model.train(), self.trainer.create_optimizer()
        self.inputs = [self.trainer.train_dataset[place // workload.group] for place in range(workload.rows)]
        self.marks = dict[str, torch.Tensor]()
        """Tensors with a value for each row, which are added to what the trainer makes of the rows."""
        self.making = Cost(0.0, 0.0)
        simulate(self.trainer, workload)
        self._make = self.trainer._generate_and_score_completions
        self.trainer._generate_and_score_completions = self._marked

    def _marked(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        begin = Cost.now()
        output = self._make(inputs) | self.marks
        self.making += Cost.now() - begin
        return output

    def step(self, *, control: bool = False) -> Cost:
        """Forward pass with loss, backward pass, clip, optimizer and ledger; not the making and scoring of completions.
        `control`: whether it is one of the steps that measure the random control."""
        trainer, self.making = self.trainer, Cost(0.0, 0.0)
        trainer.state.global_step += 1
        while (trainer.state.global_step % CONTROL_EVERY == 0) != control:
            trainer.state.global_step += 1
        seen = (trainer.args, trainer.state, trainer.control)
        begin = Cost.now()
        trainer.callback_handler.on_step_begin(*seen)
        trainer.training_step(self.model, self.inputs, None)
        trainer._clip_grad_norm(self.model)
        trainer.callback_handler.on_pre_optimizer_step(*seen)
        self.optimizer.step()
        trainer.callback_handler.on_optimizer_step(*seen)
        self.model.zero_grad()
        return Cost.now() - begin - self.making


def simulate(trainer: Any, workload: Workload) -> None:
    """From now on prompts and completions are random tokens, the same in every step and for every trainer."""
    generator, vocabulary = torch.Generator().manual_seed(0), trainer.model.config.vocab_size
    draw = torch.randint(3, vocabulary, (workload.rows, workload.prompt + workload.completion[1]), generator=generator)
    spread = torch.linspace(*workload.completion, workload.rows).round().int()
    lengths = spread[torch.randperm(workload.rows, generator=generator)].tolist()
    first = [row - row % workload.group for row in range(workload.rows)]
    prompts = [draw[row, :workload.prompt].tolist() for row in first]
    completions = [draw[row, workload.prompt:][:length].tolist() for row, length in enumerate(lengths)]
    trainer._tokenize_prompts = lambda _: (prompts, None, {})
    trainer._generate_single_turn = lambda *_: (completions, None)


def plain_trainer(config: Config, workload: Workload, run: RunFolder) -> Any:
    """TRL's own trainer, with those of the settings that are its own, on the same frozen parameters."""
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    fields = {key: value for key, value in config.trainer.items() if key in known}
    arguments = GRPOConfig(str(run.path), use_cpu=not torch.cuda.is_available(), disable_tqdm=True, **fields)
    model, tokenizer = load_model(config.model.path), load_tokenizer(config.model.path)
    freeze(model, config.model.freeze)

    def pay(prompts: list[str], **_: Any) -> list[float | None]:
        return [workload.pays(int(prompt), row + 1) for row, prompt in enumerate(prompts)]

    groups = Dataset.from_dict({"prompt": [f"{group}" for group in range(workload.rows // workload.group)]})
    return GRPOTrainer(model, pay, arguments, groups, processing_class=tokenizer)


def routed_trainer(config: Config, workload: Workload, run: RunFolder) -> Any:
    """The trainer of `routed-rl train`, with a random subspace."""
    adapter, tokenizer = config.model.adapter, load_tokenizer(config.model.path)
    model = load_model(config.model.path, config.model.dtype, frozen=adapter.trains)
    adapted = attach(model, adapter, find_writers(model), 0) if adapter.trains else None
    environments = [LoadedEnvironment(f"e{place}", cast(Any, Paying(workload, place))) for place in range(workload.environments)]
    parts = Parts(config, model, tokenizer, environments, "", adapted)
    router = make_router(parts, random_subspace(config, model, workload.rank))
    watch = Watch(Monitor(config.monitor), run) if config.monitor.completions else None
    return build_trainer(make_plan(config, run), parts.learner, tokenizer, environments, router, watch=watch)


def random_subspace(config: Config, model: Any, rank: int) -> Subspace:
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    bases = [random_basis(width, rank, generator) for _ in range(layers)]
    return Subspace(bases, [basis[:, :1] for basis in bases], ["axis"], torch.ones(layers, 1), torch.ones(layers),
                    torch.randn(layers, 64, width, generator=generator),
                    Provenance("bench", config.model.path, "", width, layers, rank))


def with_practice(arm: Arm) -> Arm:
    """The same arm, but from now on three rows in four practise."""
    arm.marks["practising"] = torch.arange(len(arm.inputs)) % 4 > 0
    return arm
