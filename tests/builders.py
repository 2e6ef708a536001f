"""Batches for tiny models, and the wiring of a routed run. Not a test itself."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby

import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from routed_rl.config import AdapterConfig, QuarantineConfig, RandomControlConfig, RoutingConfig
from routed_rl.linalg import orthonormalise_draws, random_basis
from routed_rl.model.adapter import attach
from routed_rl.model.targets import find_writers, freeze
from routed_rl.routing import Axes, Quarantine, Rates, Router, RoutingContext, RowBook, Target
from tests.families import FAMILIES, VOCAB, WIDTH, tiny

__all__ = ["FAMILIES", "VOCAB", "WIDTH", "tiny"]

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
"""Derandomised: the same examples on every machine and run."""
TOKENS = 7
FROZEN = ["embedding", "unembedding", "final_norm", "post_norm"]
@dataclass
class Batch:
    """Rows with left padding, their environments and advantages; `loss` has one denominator for all rows."""

    ids: Tensor
    mask: Tensor
    environments: Tensor
    advantages: Tensor

    def loss(self, model: nn.Module, only: int | None = None) -> Tensor:
        """Policy-gradient loss; with `only`, masked to that environment's rows, denominators unchanged."""
        logits = model(input_ids=self.ids, attention_mask=self.mask, use_cache=False).logits[:, :-1]
        chosen = logits.log_softmax(-1).gather(-1, self.ids[:, 1:, None]).squeeze(-1)
        weight = (self.mask[:, 1:] * self.mask[:, :-1]).to(chosen.dtype)
        rows = 1.0 if only is None else (self.environments == only).to(chosen.dtype)
        value = -(chosen * weight).sum(1) @ (self.advantages.to(chosen.dtype) * rows) / weight.sum()
        assert value.isfinite()
        return value


def batch(seed: int = 0, rows: int = 4, tokens: int = TOKENS, environments: Iterable[int] = (0, 1)) -> Batch:
    """Random rows; environments interleave, row i has i % 3 padding tokens on the left."""
    generator = torch.Generator().manual_seed(1000 + seed)
    present = list(environments)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    for row in range(rows):
        mask[row, : row % 3] = 0
    return Batch(ids=torch.randint(2, VOCAB, (rows, tokens), generator=generator) * mask, mask=mask,
                 environments=torch.tensor([present[row % len(present)] for row in range(rows)]),
                 advantages=torch.randn(rows, generator=generator))


def groups(parameters: list[nn.Parameter], decay: float) -> list[dict]:
    """Biases and gains are spared the decay, as trainers do."""
    return [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}]


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.03),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.0),
    "adamw with weight decay": lambda p: torch.optim.AdamW(groups(p, 0.1), lr=3e-3),
}


def random_bases(layers: int, width: int = WIDTH, rank: int = 3, seed: int = 7, *, shared: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if shared:
        return [random_basis(width, rank, generator)] * layers
    return [random_basis(width, rank, generator) for _ in range(layers)]


def find_targets(model: PreTrainedModel, bases: list[Tensor], context: RoutingContext, environments: int, unit: float = 1.0
                 ) -> list[Target]:
    """Targets of every writer; nothing is routed yet."""
    bases = [exact(basis, torch.promote_types(model.dtype, torch.float32)) for basis in bases]
    return [Target(name=w.name, layer=w.layer, module=w.module, basis=bases[w.layer], unit=unit, context=context,
                   environments=environments, transposed=w.transposed, gain_D=w.gain_D, norm_eps=w.norm_eps,
                   expert=w.expert, active=w.active)
            for w in find_writers(model)]


def exact(basis: Tensor, dtype: torch.dtype) -> Tensor:
    """The basis, orthonormal to the rounding of `dtype`; a float32 one is only so to 1e-7."""
    return basis if dtype == torch.float32 else orthonormalise_draws(basis.to(dtype))


@dataclass
class Run:
    """A model in training: the router and optimizer that a trainer has, driven as a trainer drives them."""

    model: PreTrainedModel
    mode: str = "route"
    rank: int = 3
    bases: list[Tensor] | None = None
    environments: int = 2
    optimizers: str = "adamw"
    clip: float | None = None
    """Largest norm of the gradient; None for none."""
    contained: bool | None = None
    config: QuarantineConfig = field(default_factory=QuarantineConfig)
    pace: str = "fast"
    """Instead of `config.pace`: evidence needs `rows`."""
    unit: float = 1.0
    names: list[str] | None = None
    control: int = 0
    """Steps between two measurements against random bases."""
    rows: bool = False
    """Whether completions are told apart, along `axis`."""
    axis: str | None = None
    lora: dict | None = None
    """Settings of the LoRA that is trained in place of the weights; None: the weights."""
    autocast: bool = False
    """Forwards compute in bf16."""
    steps: int = 0

    def __post_init__(self) -> None:
        self.config = dataclasses.replace(self.config, pace=self.pace)
        text = self.model.config.get_text_config()
        layers, width = text.num_hidden_layers, text.hidden_size
        bases = self.bases or random_bases(layers, width, self.rank)
        if self.lora is not None:
            self.wrapped = attach(self.model, AdapterConfig(kind="lora", **self.lora), find_writers(self.model), seed=1)
        self.context = RoutingContext()
        self.targets = find_targets(self.model, bases, self.context, self.environments, self.unit)
        self.axes = Axes(["hacker", "careless"], [basis[:, :2] for basis in random_bases(layers, width)],
                         torch.tensor([[2.0, 1.0], [4.0, 1.0]]).repeat(layers, 1)[:layers],
                         torch.tensor([1.0, 0.5]).repeat(layers)[:layers, None].expand(-1, 2))
        self.router = self.make_router() if self.mode != "none" else None
        self.quarantine = self.router and self.router.quarantine
        freeze(self.model, FROZEN)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = OPTIMIZERS[self.optimizers](self.parameters)
        self.begun = False

    def make_router(self) -> Router:
        cotangent = None if self.contained is None else "contained" if self.contained else "open"
        config = RoutingConfig(mode=self.mode, cotangent=cotangent, quarantine=self.config,
                               random_control=RandomControlConfig(every=self.control, draws=4))
        names = self.names or [f"env{e}" for e in range(self.environments)]
        stream = torch.randn(len(self.axes.directions), 50, self.axes.directions[0].shape[0],
                             generator=torch.Generator().manual_seed(3))
        return Router(Quarantine(self.targets, names, self.context), config, self.axes, stream, seed=5,
                      rows=RowBook(self.targets, self.axes, self.axis) if self.rows else None)

    def begin(self) -> None:
        """What a trainer does before the first micro-batch of a step, once."""
        if self.router is not None and not self.begun:
            self.router.begin_step(self.steps)
        self.begun = True

    def backward(self, rows: Batch, scale: float = 1.0, first: int = 0) -> float:
        """A micro-batch, whose completions are numbered from `first` on."""
        self.begin()
        if self.router is not None:
            self.router.set_batch(rows.environments, rows.mask, torch.arange(first, first + len(rows.ids)))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = rows.loss(self.model) * scale
        loss.backward()
        return loss.item()

    def step(self) -> dict[str, float]:
        """The end of a step; its row in the ledger, empty without a router. What each completion did stays in `did`."""
        clip = 1.0
        if self.clip is not None:
            clip = min(1.0, self.clip / (clip_grad_norm_(self.parameters, self.clip).item() + 1e-6))
        self.coefficient = clip
        self.optimizer.step()
        row = {}
        if self.router is not None:
            row, self.did = self.router.after_step(self.steps, clip=clip, rates=Rates(self.optimizer.param_groups))
        self.optimizer.zero_grad()
        self.steps, self.begun = self.steps + 1, False
        return row

    def train(self, steps: int, **kinds) -> Run:
        for _ in range(steps):
            self.backward(batch(seed=self.steps, **kinds))
            self.step()
        return self

    def drift(self) -> float:
        """Largest ‖BᵀW - R‖ / ‖W‖ over targets, in float64."""
        return max((exact_inside(t) - t.reference.double()).norm().item() / columns(t.module, t).norm().item()
                   for t in self.targets)


def module_of(model: nn.Module, target: Target) -> nn.Module:
    """The module of `model` that stands where the target's does; of an expert, the whole mixture."""
    return model.get_submodule(target.name if target.expert is None else target.name.rsplit(".", 2)[0])


def by_module(targets: list[Target]) -> list[list[Target]]:
    """Targets that share a module, the experts of a mixture, in one list."""
    return [list(group) for _, group in groupby(targets, key=lambda target: id(target.module))]


def routed_twin(model: nn.Module, target: Target) -> Target:
    """The target of a routed copy of the target's model."""
    found = module_of(model, target).routed_target
    return found if target.expert is None else found[target.expert]


def columns(module: nn.Module, target: Target) -> Tensor:
    """The weight of a writer as (D, N) in float64, the bias as its last column."""
    if target.expert is not None:
        return module.down_proj[target.expert].detach().double().clone()
    weight = module.weight.detach().double().clone()
    weight = weight.mT if target.weight.transposed else weight
    return weight if module.bias is None else torch.cat([weight, module.bias.detach().double().unsqueeze(1)], 1)


def exact_inside(target: Target) -> Tensor:
    return target.pair.read.double().mT @ columns(target.module, target)


def merged(model: PreTrainedModel, targets: list[Target]) -> PreTrainedModel:
    """A plain model of the same kind whose writers are `W + A C`."""
    plain = plain_copy(model)
    with torch.no_grad():
        for target in targets:
            module = module_of(plain, target)
            change = (target.pair.write.double() @ target.coefficients.double()).to(target.weight.matrix().dtype)
            if target.expert is not None:
                module.down_proj[target.expert].add_(change)
                continue
            weights = change[:, :-1] if target.has_bias else change
            module.weight.add_(weights.mT if target.weight.transposed else weights)
            if target.has_bias:
                module.bias.add_(change[:, -1])
    return plain


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A stock model with the same parameters: the deployed model, made without asking the quarantine."""
    plain = type(model)(copy.deepcopy(model.config)).to(next(model.parameters()).dtype)
    plain.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    return plain.eval()


def writer(width: int = 6, inputs: int = 5, rank: int = 2, environments: int = 3, *, bias: bool = False,
           transposed: bool = False, gain: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64) -> Target:
    """One target on a bare module, with random weights and coefficients; not routed yet."""
    generator = torch.Generator().manual_seed(seed)
    module = Conv1D(width, inputs) if transposed else nn.Linear(inputs, width, bias=bias)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    target = Target(name="writer", layer=0, module=module.to(dtype), basis=exact(random_basis(width, rank, generator), dtype),
                    unit=1.0, context=RoutingContext(), environments=environments, transposed=transposed,
                    gain_D=torch.rand(width, generator=generator) + 0.5 if gain else None)
    target.coefficients.copy_(torch.randn(target.coefficients.shape, generator=generator))
    return target


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, both finite."""
    assert found.isfinite().all() and expected.isfinite().all()
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()
