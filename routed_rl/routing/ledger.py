"""Ledger rows: what one step changed in the quarantine, and which environment caused it.

Effects of a part through later layers are not in `shift`; shares of a step are exact bookkeeping, not a counterfactual.
Shape letters: E environments, K rank, N inputs, L layers, J axes, D stream width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from routed_rl.ranks import RANKS
from routed_rl.routing.axes import Axes
from routed_rl.routing.rows import StepRows
from routed_rl.routing.target import Target


@dataclass
class EnvironmentEntry:
    """One environment's line of a row."""

    norm: float
    """|ΔC_e| of this step."""
    push: float
    """Its share of this step's growth of |C|, in units of |C|; sums over environments to the growth."""
    share: float
    """<C_e, C> / |C|² so far; sums to 1 over environments in `route`."""
    part_norm: float
    """|C_e| so far."""
    shift: dict[str, float]
    """Persona shift so far by axis: direct effect of C_e on the stream at mean input, mean over layers, in units of the
    axis' scale."""


@dataclass
class LedgerRow:
    """One step of the ledger."""

    environments: dict[str, EnvironmentEntry]
    norm: float
    """|C| after the step."""
    growth: float
    """|C| after minus before."""
    unattributed: float
    """Push that no environment's part explains: 0 in `route`, the projection's remainder in `observe`."""
    cosines: dict[str, float]
    """Between the parts of two environments, `a/b`."""
    routed_fraction: float | None
    """Energy of the routed part of the targets' gradient over all of it, this step."""
    drift: float
    """‖BᵀW - R‖ / ‖W‖ over all targets, after the step."""
    retained: float
    """‖W - W at the start‖ over all targets, an estimate."""
    layers: dict[int, float]
    """|C| of each layer's targets after the step; their squares sum to that of `norm`."""
    control: dict[str, float] = field(default_factory=dict)
    """Against random bases, on steps that measured it: `<kind>/ratio`, `<kind>/rank`, per environment too."""
    rows: StepRows | None = None
    """What each completion of this process did, where they were told apart."""
    own: dict[str, dict[str, float]] = field(default_factory=dict)
    """Sums over each environment's completions, of all processes: see `StepRows.sums`."""
    bytes: int = 0
    """What this process handed to the other ones for this row; 0 in one process."""


class LedgerBook:
    """Collects one step's sums over targets and closes them into a `LedgerRow`."""

    def __init__(self, environments: list[str], axes: Axes) -> None:
        self.environments, self.axes = environments, axes
        self._sums: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}
        """Sums over entries of weights that are in pieces, of this process' pieces."""
        self._effects: dict[int, Tensor] = {}
        self._layers: dict[int, Tensor] = {}
        self._energies: Tensor | None = None

    def _add(self, name: str, value: Tensor, *, in_pieces: bool = False) -> None:
        sums, value = self._held if in_pieces else self._sums, value.detach().double()
        sums[name] = sums[name] + value if name in sums else value

    def before(self, target: Target, ledger_EKN: Tensor, *, contained: bool) -> None:
        """Book a target's (clipped) gradients, before the tape is cleared."""
        routed, gradient = ledger_EKN.sum(0).square().sum(), target.weight.gradient_square()
        if gradient is not None:
            self._add("routed", routed)
            self._add("gradient", routed if contained else torch.zeros_like(routed))
            self._add("gradient", gradient, in_pieces=target.weight.in_pieces)
        energies = target.tape.control_energies()
        if energies is not None:
            self._energies = energies if self._energies is None else self._energies + energies

    def after(self, target: Target, delta_EKN: Tensor, old_KN: Tensor) -> None:
        """Book a target's change: `delta_EKN` is ΔC_e, `old_KN` the coefficients before the step."""
        new = target.coefficients
        both = old_KN + new
        flat = target.parts.flatten(1)
        self._add("norm", delta_EKN.square().sum(dim=(1, 2)))
        self._add("push", (delta_EKN * both).sum(dim=(1, 2)))
        self._add("gram", flat @ flat.mT)
        self._add("with_whole", flat @ new.flatten())
        square = new.square().sum()
        self._add("square", torch.stack([old_KN.square().sum(), square]))
        self._layers[target.layer] = self._layers.get(target.layer, 0.0) + square.detach().double()
        self._add("retained", target.weight.moved(), in_pieces=target.weight.in_pieces)
        self._add("drift", target.drift().square().sum())
        self._add("weight", target.weight.square(), in_pieces=target.weight.in_pieces)
        effect = (target.tape.mean().unsqueeze(0) @ target.parts.mT)[:, 0] @ target.pair.basis.mT
        self._effects[target.layer] = self._effects.get(target.layer, torch.zeros_like(effect)) + effect

    def close(self, control_kind: str) -> LedgerRow:
        """The row of this step; the book is empty afterwards."""
        RANKS.sum_(list(self._held.values()))
        for name, value in self._held.items():
            self._add(name, value)
        sums = {name: value.cpu() for name, value in self._sums.items()}
        old, new = (value**0.5 for value in sums["square"].tolist())
        pushes = sums["push"] / max(old + new, 1e-30)
        gram, shifts = sums["gram"], self._shifts()
        norms = gram.diagonal().clamp(min=0).sqrt()
        entries = {name: EnvironmentEntry(
            norm=float(sums["norm"][e]) ** 0.5, push=float(pushes[e]), part_norm=float(norms[e]),
            share=float(sums["with_whole"][e]) / max(new**2, 1e-30), shift=shifts[e])
            for e, name in enumerate(self.environments)}
        row = LedgerRow(
            entries, norm=new, growth=new - old, unattributed=new - old - float(pushes.sum()),
            cosines=_cosines(self.environments, gram, norms),
            routed_fraction=float(sums["routed"] / sums["gradient"].clamp(min=1e-30)) if "routed" in sums else None,
            drift=float(sums["drift"] / sums["weight"]) ** 0.5,
            retained=float(sums["retained"]) ** 0.5, layers={layer: float(value) ** 0.5 for layer, value in self._layers.items()},
            control=self._control(control_kind))
        self._sums, self._held, self._effects, self._layers, self._energies = {}, {}, {}, {}, None
        return row

    def _shifts(self) -> list[dict[str, float]]:
        """Per environment, the shift along each axis: writers add up along the stream, then the mean over layers."""
        total: Tensor | None = None
        stream: Tensor | None = None
        for layer in sorted(self._effects):
            stream = self._effects[layer] if stream is None else stream + self._effects[layer]
            along = stream.cpu().float() @ self.axes.directions[layer].float() / self.axes.scales[layer]
            total = along if total is None else total + along
        assert total is not None
        mean_EJ = total / len(self._effects)
        return [dict(zip(self.axes.names, row, strict=True)) for row in mean_EJ.tolist()]

    def _control(self, kind: str) -> dict[str, float]:
        if self._energies is None:
            return {}
        found: dict[str, float] = {}
        for column, name in enumerate(["all", *self.environments]):
            real, *draws = self._energies[:, column].tolist()
            mean = sum(draws) / len(draws)
            if mean > 0:
                found[f"{kind}/{name}/ratio"] = real / mean
                found[f"{kind}/{name}/rank"] = 1.0 + sum(draw > real for draw in draws)
        return found


def _cosines(environments: list[str], gram: Tensor, norms: Tensor) -> dict[str, float]:
    return {f"{a}/{b}": float(gram[i, j] / (norms[i] * norms[j]).clamp(min=1e-30))
            for i, a in enumerate(environments) for j, b in enumerate(environments) if i < j}
