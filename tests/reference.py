"""The design's steps written again in float64, on top of autograd's clamped loss. Not a test itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from routed_rl.model.targets import freeze
from routed_rl.routing import Target
from tests.builders import FROZEN, Batch, Run, batch, columns
from tests.clamped import clamped_model


class Reference:
    """Design 3.2 and the steps of section 3, written again in float64 from the text, on top of autograd's clamped loss."""

    def __init__(self, run: Run) -> None:
        self.run, self.steps = run, 0
        self.model, self.leaves, self.parameters = self.make()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=3e-3, weight_decay=0.0)
        self.inputs: dict[str, torch.Tensor] = {}
        for target in run.targets:
            module = self.model.get_submodule(target.name)
            module.register_forward_pre_hook(lambda _m, args, name=target.name: self.inputs.__setitem__(name, args[0]))
        self.state = {t.name: dict(m=torch.zeros_like(t.parts), v=0.0, C=torch.zeros_like(t.parts)) for t in run.targets}

    def make(self) -> tuple[PreTrainedModel, dict[str, Tensor], list[nn.Parameter]]:
        model, leaves = clamped_model(self.run.model, self.run.targets, contained=True)
        freeze(model, FROZEN)
        return model, leaves, [p for p in model.parameters() if p.requires_grad]

    def train_beside(self, run: Run, steps: int) -> None:
        """Give `run` and this the same batches."""
        for step in range(steps):
            present = [(0, 1, 2), (2, 0), (1,)][step % 3]  # Interleaved; environments come and go.
            micro_batches = [batch(seed=100 * step + i, rows=4, environments=present[:: 1 - 2 * i]) for i in range(2)]
            for rows in micro_batches:
                run.backward(rows)
            run.step()
            self.step(micro_batches)

    def step(self, micro_batches: list[Batch]) -> None:
        self.steps += 1
        config, E = self.run.config, self.run.environments
        (b1, b2), names = config.betas, list(self.leaves)
        ledgers = {name: torch.zeros_like(self.state[name]["C"]) for name in names}
        samples: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        self.optimizer.zero_grad()
        for rows in micro_batches:
            for e in range(E):
                grads = torch.autograd.grad(rows.loss(self.model, only=e), list(self.leaves.values()))
                for name, grad in zip(names, grads, strict=True):
                    ledgers[name][e] += grad
            rows.loss(self.model).backward(inputs=self.parameters)
            for name in names:
                real = self.inputs[name][rows.mask.bool()].detach()
                samples[name].append(torch.cat([real, torch.ones_like(real[:, :1])], 1)[:, :self.state[name]["m"].shape[2]])
        self.optimizer.step()
        for target in self.run.targets:
            name, state = target.name, self.state[target.name]
            state["m"] = b1 * state["m"] + (1 - b1) * ledgers[name]
            state["v"] = b2 * state["v"] + (1 - b2) * sum((ledgers[name][e] ** 2).mean() for e in range(E))
            m_hat, v_hat = state["m"] / (1 - b1**self.steps), state["v"] / (1 - b2**self.steps)
            delta = -config.learning_rate * m_hat / (v_hat**0.5 + config.eps)
            shift = (torch.cat(samples[name]) @ delta.sum(0).T @ target.pair.basis.T).norm(dim=1)
            rms = (shift**2).mean() ** 0.5 / target.unit
            delta *= min(1.0, config.max_shift / len(names) / rms)
            state["C"] += delta
            with torch.no_grad():
                self.leaves[name].copy_(state["C"].sum(0))
                self.reimpose(target)

    def reimpose(self, target: Target) -> None:
        module = self.model.get_submodule(target.name)
        inside = target.pair.read.T @ columns(module, target) - target.reference
        change = target.pair.write @ inside
        module.weight -= change[:, :-1].T
        module.bias -= change[:, -1]


class LoraReference(Reference):
    """The same for a LoRA: every linear layer is `W x + s B A x`, with `(I - A_basis B_basisᵀ) B` in place of a writer's B."""

    def __init__(self, run: Run, plain: PreTrainedModel) -> None:
        self.plain, self.ups = plain, dict[str, nn.Parameter]()
        super().__init__(run)

    def make(self) -> tuple[PreTrainedModel, dict[str, Tensor], list[nn.Parameter]]:
        targets, parameters = {target.name: target for target in self.run.targets}, list[nn.Parameter]()
        leaves = {name: target.coefficients.clone().requires_grad_(True) for name, target in targets.items()}
        self.plain.requires_grad_(False)
        for name, module in list(self.plain.named_modules()):
            ours = self.run.model.get_submodule(name)
            if hasattr(ours, "lora_A"):
                up, down = (nn.Parameter(factor["default"].weight.detach().double().clone())
                            for factor in (ours.lora_B, ours.lora_A))
                parameters += [down, up]
                self.ups[name] = up
                module.forward = lora_forward(module, up, down, ours.scaling["default"], targets.get(name), leaves.get(name))
        return self.plain, leaves, parameters

    def reimpose(self, target: Target) -> None:
        up = self.ups[target.name]
        up.copy_(projected(up, target))


def projected(up: Tensor, target: Target) -> Tensor:
    return up - target.pair.write.double() @ (target.pair.read.double().mT @ up)


def lora_forward(module: nn.Module, up: Tensor, down: Tensor, scaling: float, target: Target | None, leaf: Tensor | None):
    weight = module.weight.mT if isinstance(module, Conv1D) else module.weight

    def forward(x: Tensor) -> Tensor:
        y = linear(x, weight, module.bias)
        if target is None or leaf is None:
            return y + scaling * (x @ down.mT) @ up.mT
        y = y + scaling * (x @ down.mT) @ projected(up, target).mT
        A, B = target.pair.write.double(), target.pair.read.double()
        return y - (y - y.detach()) @ B @ A.mT + x.detach() @ leaf.mT @ A.mT

    return forward
