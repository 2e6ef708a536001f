"""Computes the ledger's row of a step: numbers that say how the step changed the quarantine, and how much of the change each
environment caused.

`tracking.METRICS` lists the names of these numbers and explains them. The shift by an environment's part does not include what
later layers do in reaction to it. The split by environment is exact bookkeeping, not a counterfactual. Shape letters: E
environments, K rank, N inputs, L layers, J axes, D stream width.
"""

from itertools import accumulate, combinations

import torch
from torch import Tensor

from routed_rl.ranks import RANKS
from routed_rl.routing.axes import Axes
from routed_rl.routing.target import Target


class LedgerBook:
    """Collects sums over all targets during one step, and computes the ledger's row of the step from these sums."""

    def __init__(self, environments: list[str], axes: Axes) -> None:
        self.environments, self.axes = environments, axes
        self._sums: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}
        """Sums for weights in pieces, over the entries that this process holds. `close` adds them up over the processes."""
        self._effects: dict[int, Tensor] = {}
        self._layers: dict[int, Tensor] = {}
        self._energies: Tensor | None = None

    def _add(self, name: str, value: Tensor, *, in_pieces: bool = False) -> None:
        sums, value = self._held if in_pieces else self._sums, value.detach().double()
        sums[name] = sums[name] + value if name in sums else value

    def before(self, target: Target, ledger_EKN: Tensor, *, contained: bool) -> None:
        """Add to the sums what is known of a target before its step: its clipped ledger `ledger_EKN` and the gradient of its
        weight. Must be called before the target's tape is cleared. `contained`: whether taps passed on contained cotangents in
        this step."""
        whole = target.context.now.whole
        routed, gradient = target.weight.routed_square(ledger_EKN.sum(0), whole=whole), target.weight.gradient_square()
        if gradient is not None:
            self._add("routed", routed)
            # The LoRA of a frozen writer stays outside the subspace even with an open cotangent.
            self._add("gradient", routed if contained or (target.frozen and not whole) else torch.zeros_like(routed))
            self._add("gradient", gradient, in_pieces=target.weight.piece is not None)
        energies = target.tape.control_energies()
        if energies is not None:
            self._energies = energies if self._energies is None else self._energies + energies

    def after(self, target: Target, delta_EKN: Tensor, old_KN: Tensor) -> None:
        """Add to the sums the change of a target, after its step has been made: `delta_EKN` are the changes ΔC_e of the
        environments' parts, and `old_KN` are the coefficients before the step."""
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
        self._add("retained", target.weight.moved(), in_pieces=target.weight.piece is not None)
        self._add("drift", target.drift().square().sum())
        self._add("weight", target.weight.square(), in_pieces=target.weight.piece is not None)
        effect = (target.tape.mean().unsqueeze(0) @ target.parts.mT)[:, 0] @ target.pair.basis.mT
        self._effects[target.place] = self._effects.get(target.place, torch.zeros_like(effect)) + effect

    def close(self, control_kind: str) -> dict[str, float]:
        """Return the ledger's row of this step, by the names of `tracking.METRICS`, and empty the book. `control_kind`: the kind
        of random bases that were measured in this step, one of `CONTROL_KINDS`."""
        RANKS.sum_(list(self._held.values()))
        for name, value in self._held.items():
            self._add(name, value)
        sums = {name: value.cpu() for name, value in self._sums.items()}
        old, new = (value**0.5 for value in sums["square"].tolist())
        pushes, gram = sums["push"] / max(old + new, 1e-30), sums["gram"]
        norms, retained = gram.diagonal().clamp(min=0).sqrt(), float(sums["retained"]) ** 0.5
        row = {"quarantine/norm": new, "quarantine/growth": new - old,
               "quarantine/unattributed": new - old - float(pushes.sum()),
               "routing/drift": float(sums["drift"] / sums["weight"].clamp(min=1e-30)) ** 0.5}
        if retained > 0:
            row["quarantine/relative"] = new / retained
        if "routed" in sums:
            row["routing/routed_fraction"] = float(sums["routed"] / sums["gradient"].clamp(min=1e-30))
        for e, (name, shifts) in enumerate(zip(self.environments, self._shifts(), strict=True)):
            row |= {f"ledger/{name}/norm": float(sums["norm"][e]) ** 0.5, f"ledger/{name}/push": float(pushes[e]),
                    f"ledger/{name}/share": float(sums["with_whole"][e]) / max(new**2, 1e-30),
                    f"ledger/{name}/part_norm": float(norms[e])}
            row |= {f"ledger/{name}/shift/{axis}": shift for axis, shift in zip(self.axes.names, shifts, strict=True)}
        row |= {f"quarantine/layer/{layer}/norm": float(value) ** 0.5 for layer, value in self._layers.items()}
        row |= {f"ledger/cosine/{a}/{b}": float(gram[i, j] / (norms[i] * norms[j]).clamp(min=1e-30))
                for (i, a), (j, b) in combinations(enumerate(self.environments), 2)} | self._control(control_kind)
        self._sums, self._held, self._effects, self._layers, self._energies = {}, {}, {}, {}, None
        return row

    def _shifts(self) -> list[list[float]]:
        """The shift of the stream by each environment's part along each axis, (E, J), as the weighted mean over layers. The
        effect at a layer is the sum of the effects of all writers whose place is this layer or one before it."""
        layers, found = sorted(self._effects), dict[tuple[float, ...], Tensor]()
        streams = [stream.cpu().float() for stream in accumulate(self._effects[layer] for layer in layers)]
        columns = list[Tensor]()
        for column in range(len(self.axes.names)):
            shares = tuple(self.axes.shares(layers, column).values())
            if shares not in found:  # most axes have the same weights
                along = [share * stream @ self.axes.directions[layer].float() / self.axes.scales[layer]
                         for share, stream, layer in zip(shares, streams, layers, strict=True)]
                found[shares] = sum(along[1:], along[0])
            columns.append(found[shares][:, column])
        return torch.stack(columns, 1).tolist()

    def _control(self, kind: str) -> dict[str, float]:
        if self._energies is None:
            return {}
        found: dict[str, float] = {}
        for column, name in enumerate(["all", *self.environments]):
            real, *draws = self._energies[:, column].tolist()
            mean = sum(draws) / len(draws)
            if mean > 0:
                found[f"control/{kind}/{name}/ratio"] = real / mean
                found[f"control/{kind}/{name}/rank"] = 1.0 + sum(draw > real for draw in draws)
        return found
