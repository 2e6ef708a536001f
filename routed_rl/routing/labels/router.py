"""The router of a run with label routing. It has the same methods as `Router`, called in the same order, but no subspace."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.config import RoutingConfig
from routed_rl.errors import SubspaceError
from routed_rl.ranks import RANKS
from routed_rl.routing.context import RoutingContext
from routed_rl.routing.labels.gate import LabelSite, unlabel_module
from routed_rl.routing.quarantine import Quarantine
from routed_rl.routing.rates import Rates
from routed_rl.routing.router import Router
from routed_rl.routing.rows import StepRows


class LabelQuarantine(Quarantine):
    """The quarantine of label routing: the adapters of all modules, with both factors of each trained. There are no targets and
    no basis. All environments share the adapters, so the quarantine is not split into parts."""

    def __init__(self, modules: Mapping[str, nn.Module], environments: list[str], context: RoutingContext) -> None:
        """`modules`: by name, all modules to which `label_module` has been applied; there must be at least one."""
        super().__init__([], environments, context)
        self.modules = dict(modules)
        self.sites: dict[str, LabelSite] = {name: site_of(module) for name, module in modules.items()}
        self.adapters = {name: site.adapter for name, site in self.sites.items() if site.adapter is not None}
        self.gates = next(iter(self.sites.values())).gates

    def remove(self) -> None:
        for module in self.modules.values():
            if hasattr(module, "label_site"):
                unlabel_module(module)

    @contextmanager
    def scaled(self, scale: float) -> Iterator[None]:
        self.gates.scale = scale
        try:
            yield
        finally:
            self.gates.scale = 1.0

    def norm(self) -> float:
        """The Frobenius norm ‖B A‖ over all adapters together."""
        return sum(adapter.square() for adapter in self.adapters.values()) ** 0.5

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": factor.detach() for name, adapter in self.adapters.items()
                for key, factor in adapter.factors.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            if name not in state or state[name].shape != value.shape:
                found = tuple(state[name].shape) if name in state else None
                raise SubspaceError(f"checkpoint holds {found} for {name} where this run has {tuple(value.shape)}; resume with "
                                    "the same model and routing.labels.rank")
            value.copy_(state[name])


class LabelRouter(Router):
    """The router of label routing. It trains the quarantine's adapters with AdamW, at `routing.labels.pace` times the learning
    rate of the weights."""

    def __init__(self, quarantine: LabelQuarantine, config: RoutingConfig) -> None:
        # Router's own is not called, because there are no targets, no axes and no ledger.
        self.quarantine, self.config, self.context = quarantine, config, quarantine.context
        self.pushes = dict.fromkeys(quarantine.environments, 0.0)
        self.factors = {f"{name}.{key}": factor for name, adapter in quarantine.adapters.items()
                        for key, factor in adapter.factors.items()}
        self.adam = torch.optim.AdamW(self.factors.values(), lr=0.0)
        self._norm, self._flagged = quarantine.norm(), [0, 0]

    def begin_step(self, step: int) -> None:
        """Does nothing, because nothing has to be prepared."""

    def see(self, flagged: Tensor) -> None:
        """Count the flags of a micro-batch for the metric `labels/flagged`. `flagged`: one flag for each row (B,), or for each of
        the C tokens of the completions (B, C)."""
        self._flagged = [self._flagged[0] + int(flagged.sum()), self._flagged[1] + flagged.numel()]

    def set_batch(self, environment_ids_B: Tensor, mask_BT: Tensor, completions_B: Tensor | None = None,
                  practising_B: Tensor | None = None, flagged_BT: Tensor | None = None) -> None:
        """Describe the rows of the next loss: the index of each row's environment, and the flagged positions `flagged_BT` as
        `positions_of` returns them (None: no position is flagged). The other arguments are those of `Router.set_batch` and are
        not used."""
        if flagged_BT is not None and not (flagged_BT.any() and self.config.labels.route):
            flagged_BT = None
        self.context.change(environment_ids_B=environment_ids_B, flagged_BT=flagged_BT)

    @torch.no_grad()
    def after_step(self, step: int, *, clip: float, rates: Rates) -> tuple[dict[str, float], StepRows | None]:
        self._average()
        for factor in self.factors.values():
            if factor.grad is not None:
                factor.grad *= clip
        for group in self.adam.param_groups:
            group["lr"], group["weight_decay"] = rates.most * self.config.labels.pace, rates.weight_decay
        self.adam.step()
        self.adam.zero_grad()
        self.context.change(flagged_BT=None)
        before, self._norm = self._norm, self.quarantine.norm()
        found, among = map(sum, zip(*RANKS.gather(self._flagged), strict=True))
        self._flagged = [0, 0]
        return {"quarantine/norm": self._norm, "quarantine/growth": self._norm - before,
                "labels/flagged": found / among if among else 0.0}, None

    def _average(self) -> None:
        """Replace the gradient of each factor by its mean over all processes. The factors are no parameters of the model, so
        neither DDP nor FSDP2 does this."""
        if RANKS.count == 1:
            return
        for factor in self.factors.values():  # a process may have none
            factor.grad = torch.zeros_like(factor) if factor.grad is None else factor.grad
        gradients = [factor.grad for factor in self.factors.values() if factor.grad is not None]
        RANKS.sum_(gradients)
        for gradient in gradients:
            gradient.div_(RANKS.count)

    def measure_start(self) -> None:
        """Does nothing, because label routing does not measure the movement of the weights."""

    def state_dict(self) -> dict[str, Tensor]:
        moments = {f"{name}.{key}": self.adam.state[factor][key] for name, factor in self.factors.items()
                   for key in self.adam.state.get(factor, {})}
        return self.quarantine.state_dict() | moments | {"pushes": torch.zeros(len(self.pushes), dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.quarantine.load_state_dict(state)
        for name, factor in self.factors.items():
            if f"{name}.step" in state:
                self.adam.state[factor] = {"step": state[f"{name}.step"]} | {
                    key: state[f"{name}.{key}"].to(factor.device) for key in ("exp_avg", "exp_avg_sq")}
        self._norm = self.quarantine.norm()


def positions_of(flagged: Tensor, length: int) -> Tensor:
    """Return which positions are flagged, 1 or 0, (B, T) with T = `length`. If `flagged` is (B,), with a flag for each row, all
    positions of a flagged row are 1. If it is (B, C), with a flag for each of a row's last C tokens, the positions that predict a
    flagged token are 1."""
    if flagged.dim() == 1:
        return flagged.float()[:, None].repeat(1, length)
    before = length - 1 - flagged.shape[1]
    return nn.functional.pad(flagged.float(), (before, 1))


def site_of(module: Any) -> LabelSite:
    return module.label_site
