"""The retained change of a run: its changed weights, or the product of each LoRA that it trained. Not covered: the quarantine.

A LoRA with the factors A and B and the scaling s adds `s B A` to the weight of a module. With B set to 0 the module has the base
model's weight again, so no weight of the frozen model needs to be copied. The energy of a change is its squared Frobenius norm,
for a LoRA `‖s B A‖²`.
"""

from dataclasses import dataclass
from pathlib import Path

from routed_rl import checkpoint
from routed_rl.audit.groups import State, changed
from routed_rl.export.lora import retained
from routed_rl.model.adapter import stored_names
from routed_rl.pipeline.build import Parts
from routed_rl.routing.adapted import NAME, product_square

UP, DOWN = f".lora_B.{NAME}.weight", f".lora_A.{NAME}.weight"
"""Endings of the names of a LoRA's parameters: `UP` for the factor B, `DOWN` for the factor A."""


@dataclass(frozen=True, eq=False)
class Change:
    """The trained parameters of a run before and after the change, and the size of the change."""

    base: State
    """The values without the change: those of the base model, or, for a run that trained a LoRA, its factors with every B set to
    0."""
    deployed: State
    """The values of the deployed model, for the same parameters as `base`."""
    sizes: dict[str, int]
    """For each changed parameter, how many numbers were trained. The numbers of both factors of a LoRA are counted under the name
    of its B."""
    energies: dict[str, float]
    """For each changed parameter, the squared Frobenius norm ‖ΔW‖² of its change. For a LoRA, that is the energy of its product,
    under the name of its B."""

    @property
    def names(self) -> list[str]:
        """The parameters that carry the change, in the model's order."""
        return list(self.energies)


def read_change(parts: Parts, folder: Path) -> Change:
    """Read the retained change of the checkpoint in `folder`. `parts.model` must have the base model's weights; it is not
    changed."""
    return _of_adapter(parts, folder) if stored_names(parts.model) else _of_weights(parts, folder)


def _of_weights(parts: Parts, folder: Path) -> Change:
    deployed = checkpoint.read_weights(parts.model, folder)
    base = {name: parameter.detach().to("cpu", copy=True) for name, parameter in parts.model.named_parameters()}
    names = changed(base, deployed)
    return Change(base, deployed, {name: deployed[name].numel() for name in names},
                  {name: (deployed[name] - base[name]).square().sum().item() for name in names})


def _of_adapter(parts: Parts, folder: Path) -> Change:
    deployed = checkpoint.read_weights(parts.model, folder)
    base = {name: value.new_zeros(value.shape) if name.endswith(UP) else value for name, value in deployed.items()}
    products, _ = retained(folder)
    names = changed(base, deployed)
    modules = {name: name.removesuffix(UP) for name in names}
    return Change(base, deployed, {name: deployed[name].numel() + deployed[f"{module}{DOWN}"].numel()
                                   for name, module in modules.items()},
                  {name: product_square(*products[module]).item() for name, module in modules.items()})
