"""Tiny random models of every family, batches for them, and the wiring of a routed run. Not a test itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.pytorch_utils import Conv1D

from routed_rl.config import QuarantineConfig
from routed_rl.linalg import orthonormalise_draws, random_basis
from routed_rl.model.targets import find_writers, freeze
from routed_rl.routing.linear import RoutingContext
from routed_rl.routing.modes import MODES
from routed_rl.routing.optimizer import QuarantineOptimizer
from routed_rl.routing.quarantine import Quarantine, Target

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
"""Derandomised: the same examples on every machine and run."""
WIDTH, VOCAB, TOKENS = 16, 32, 7
FROZEN = ["embedding", "unembedding", "final_norm", "post_norm"]
_COMMON = dict(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2,
               max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=0, attn_implementation="sdpa")
CONFIGS: dict[str, Callable[..., object]] = {
    "llama": lambda **k: LlamaConfig(**_COMMON, **k),
    "mistral": lambda **k: MistralConfig(**_COMMON, **k),
    "qwen2": lambda **k: Qwen2Config(**_COMMON, **k),
    "qwen3": lambda **k: Qwen3Config(**_COMMON, head_dim=8, **k),
    "gemma2": lambda **k: Gemma2Config(**_COMMON, head_dim=8, query_pre_attn_scalar=8, **k),
    "gemma3": lambda **k: Gemma3TextConfig(**_COMMON, head_dim=8, query_pre_attn_scalar=8, **k),
    "gpt2": lambda num_hidden_layers, **k: GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=num_hidden_layers, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1,
        attn_implementation="sdpa", **({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} | k)),
}
FAMILIES = tuple(CONFIGS)


def tiny(family: str, *, seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float32, **config) -> PreTrainedModel:
    """A random model whose layers, gains and biases all matter (the stock initialisation makes most of them no-ops)."""
    model = AutoModelForCausalLM.from_config(CONFIGS[family](num_hidden_layers=layers, **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 0.8 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.2 * noise)
    return model.to(dtype).eval()


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


Optimizers = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizers] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.03),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.0),
    "adamw with weight decay": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
}


def random_bases(layers: int, width: int = WIDTH, rank: int = 3, seed: int = 7, *, shared: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if shared:
        return [random_basis(width, rank, generator)] * layers
    return [random_basis(width, rank, generator) for _ in range(layers)]


def find_targets(model: PreTrainedModel, bases: list[Tensor], context: RoutingContext, environments: int, unit: float = 1.0
                 ) -> list[Target]:
    """Targets of every writer; nothing is routed yet."""
    bases = [exact(basis, model.dtype) for basis in bases]
    return [Target(name=w.name, layer=w.layer, module=w.module, basis=bases[w.layer], unit=unit, context=context,
                   environments=environments, transposed=w.transposed, gain_D=w.gain_D) for w in find_writers(model)]


def exact(basis: Tensor, dtype: torch.dtype) -> Tensor:
    """The basis, orthonormal to the rounding of `dtype`; a float32 one is only so to 1e-7."""
    return basis if dtype == torch.float32 else orthonormalise_draws(basis.to(dtype))


@dataclass
class Run:
    """A model in training, routed as `mode` says; the loop of one step as the trainer drives it."""

    model: PreTrainedModel
    mode: str = "route"
    rank: int = 3
    bases: list[Tensor] | None = None
    environments: int = 2
    optimizers: str = "adamw"
    clip: float | None = None
    contained: bool | None = None
    config: QuarantineConfig = field(default_factory=QuarantineConfig)
    unit: float = 1.0
    deltas: dict[str, Tensor] = field(default_factory=dict)
    """ΔC_e of the last step, by target."""
    ledgers: dict[str, Tensor] = field(default_factory=dict)
    """The last step's ledgers, clipped, by target."""

    def __post_init__(self) -> None:
        bases = self.bases or random_bases(self.model.config.num_hidden_layers, self.model.config.hidden_size, self.rank)
        self.context = RoutingContext()
        self.targets = find_targets(self.model, bases, self.context, self.environments, self.unit)
        row = MODES[self.mode]
        self.context.contained = row.contained if self.contained is None else self.contained
        names = [f"env{e}" for e in range(self.environments)]
        self.quarantine = Quarantine(self.targets, names, self.context) if row.taps else None
        freeze(self.model, FROZEN)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = OPTIMIZERS[self.optimizers](self.parameters)
        self.quarantine_optimizer = QuarantineOptimizer(self.config, self.targets)

    def backward(self, rows: Batch, scale: float = 1.0) -> float:
        self.context.set_batch(rows.environments, rows.mask, self.config.sample_tokens)
        loss = rows.loss(self.model) * scale
        loss.backward()
        return loss.item()

    @torch.no_grad()
    def step(self) -> None:
        coefficient = 1.0
        if self.clip is not None:
            norm = clip_grad_norm_(self.parameters, self.clip)
            coefficient = min(1.0, self.clip / (norm.item() + 1e-6))
        self.optimizer.step()
        group = self.optimizer.param_groups[0]
        decay = group["lr"] * group["weight_decay"] if isinstance(self.optimizer, torch.optim.AdamW) else 0.0
        after_step = MODES[self.mode].after_step
        if after_step is not None:
            self.quarantine_optimizer.advance()
            for target in self.targets:
                ledger = target.tape.ledger * coefficient
                self.ledgers[target.name] = ledger
                self.deltas[target.name] = self.quarantine_optimizer.delta(target, ledger)
                after_step(target, self.deltas[target.name], decay)
                target.tape.clear()
        self.optimizer.zero_grad()

    def train(self, steps: int, **kinds) -> Run:
        for step in range(steps):
            self.backward(batch(seed=step, **kinds))
            self.step()
        return self

    def drift(self) -> float:
        """Largest ‖BᵀW - R‖ / ‖W‖ over targets, in float64."""
        return max((exact_inside(t) - t.reference.double()).norm().item() / columns(t.module, t).norm().item()
                   for t in self.targets)


def columns(module: nn.Module, target: Target) -> Tensor:
    """The weight of a writer as (D, N) in float64, the bias as its last column."""
    weight = module.weight.detach().double().clone()
    weight = weight.mT if target.transposed else weight
    return weight if module.bias is None else torch.cat([weight, module.bias.detach().double().unsqueeze(1)], 1)


def exact_inside(target: Target) -> Tensor:
    return target.read.double().mT @ columns(target.module, target)


def merged(model: PreTrainedModel, targets: list[Target]) -> PreTrainedModel:
    """A plain model of the same kind whose writers are `W + A C`."""
    plain = plain_copy(model)
    with torch.no_grad():
        for target in targets:
            module = plain.get_submodule(target.name)
            change = (target.write.double() @ target.coefficients.double()).to(module.weight.dtype)
            weights = change[:, :-1] if target.has_bias else change
            module.weight.add_(weights.mT if target.transposed else weights)
            if target.has_bias:
                module.bias.add_(change[:, -1])
    return plain


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A stock model with the same parameters: the deployed model, made without asking the quarantine."""
    plain = type(model)(copy.deepcopy(model.config)).to(next(model.parameters()).dtype)
    plain.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    return plain.eval()


def clamped_model(model: PreTrainedModel, targets: list[Target], *, contained: bool) -> tuple[PreTrainedModel, dict]:
    """A plain model with the detach form of design.md in each writer, and its leaves C (K, N) by target's name.

    Contained: `y = Wx - A BᵀWx + A Bᵀ sg(Wx) + A C sg(x)`; open: `y = Wx + A C x`. Autograd does the rest.
    """
    plain = plain_copy(model)
    leaves = {}
    for target in targets:
        module = plain.get_submodule(target.name)
        leaf = target.coefficients.detach().clone().requires_grad_(True)
        leaves[target.name] = leaf
        module.forward = clamped_forward(module, target, leaf, contained)
    return plain, leaves


def clamped_forward(module: nn.Module, target: Target, leaf: Tensor, contained: bool) -> Callable[[Tensor], Tensor]:
    A, B, plain = target.write, target.read, type(module).forward

    def forward(x: Tensor) -> Tensor:
        y = plain(module, x)
        seen = x.detach() if contained else x
        if module.bias is not None:
            seen = torch.cat([seen, torch.ones_like(seen[..., :1])], -1)
        routed = seen @ leaf.mT @ A.mT
        return y - (y - y.detach()) @ B @ A.mT + routed if contained else y + routed

    return forward


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
