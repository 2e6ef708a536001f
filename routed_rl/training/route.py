"""Makes a router for a model and a subspace: freezes parameters, and routes the model's writers in place."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl import console
from routed_rl.config import RoutingConfig, SubspaceConfig
from routed_rl.errors import ConfigError
from routed_rl.model.targets import Writer, freeze
from routed_rl.ranks import RANKS
from routed_rl.routing import Axes, Quarantine, Router, RoutingContext, RowBook, Target
from routed_rl.routing.adapted import has_adapter
from routed_rl.subspace import Subspace

SHOWN = 12
"""The largest number of names that a message lists."""


def check_routable(writers: list[Writer], frozen: list[str], balance: float | None) -> None:
    """ConfigError if a model with these `writers` cannot be routed with the settings. `frozen`: the value of `model.freeze`.
    `balance`: the coefficient of the loss that balances a mixture's experts."""
    if "post_norm" not in frozen and any(writer.gain_D is not None and writer.norm_eps is not None for writer in writers):
        raise ConfigError(f"model.freeze={frozen} trains the gains of the norms between writers and stream, so a "
                          "writer's basis would change; add post_norm to model.freeze")
    if any(writer.expert is not None for writer in writers) and balance != 0:
        raise ConfigError("the loss that balances a mixture's experts mixes the rows of all environments, so its gradient could "
                          "not be attributed to one of them; set trainer.router_aux_loss_coef=0")


def bases_of(subspace: Subspace, settings: SubspaceConfig) -> list[Tensor]:
    """Return for each layer of the subspace the basis (D, K) of the writers whose `place_of` is this layer. `settings`: its
    fields `layout`, `drop_below` and `shared_rank` are read."""
    return subspace.writer_bases(settings.layout, settings.drop_below, settings.shared_rank)


def place_of(writer: Writer, subspace: Subspace) -> int:
    """Return the place of a writer: the layer of the subspace at whose hook the stream was read first after the writer had added
    its output. If the stream was not read after the writer, its place is the last layer, so that the writer is routed too."""
    hook = subspace.provenance.hook
    read_before = hook == "resid_pre" or (hook == "resid_mid" and not writer.mixer)
    return min(writer.layer + read_before, subspace.provenance.layers - 1)


def route_model(model: PreTrainedModel, writers: list[Writer], subspace: Subspace, routing: RoutingConfig, names: Sequence[str],
                *, bases: list[Tensor], frozen: list[str], axis: str | None, seed: int) -> Router:
    """Freeze parameters of a model, route its writers in place, and return the router. `names`: the environments that the model
    trains on. `bases`: the result of `bases_of`. `frozen`: the value of `model.freeze`. `axis`: the axis of the subspace along
    which the shift of each completion is measured; None: the first axis. `seed`: the seed of the random control. `check_routable`
    must have accepted the model."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    freeze(model, frozen)
    context = RoutingContext()
    context.adapter = next(filter(has_adapter, model.modules()), None)  # which may be on no writer
    targets = [Target(writer.name, writer.layer, writer.module, bases[place], float(subspace.units[place]), context, len(names),
                      transposed=writer.transposed, gain_D=writer.gain_D, norm_eps=writer.norm_eps, expert=writer.expert,
                      active=writer.active, place=place)
               for writer in writers for place in [place_of(writer, subspace)]]
    weights_LJ = torch.stack([subspace.layer_weights(name) for name in subspace.axis_names], 1)
    axes = Axes(subspace.axis_names, subspace.axes, subspace.scales, weights_LJ)
    if axis is not None and not subspace.measures(axis) and subspace.measures(subspace.axis_names[0]) and RANKS.rank == 0:
        console.say(f"monitor.axis={axis} was not measured by itself, so layers count by how well {subspace.axis_names[0]} tells "
                    "the personas apart; extract the subspace with --check, or by extract_subspace(..., axes=True)")
    rows = RowBook(targets, axes, axis)
    quarantine = Quarantine(targets, list(names), context)
    quarantine.frozen = [parameter for parameter in trained if not parameter.requires_grad]
    return Router(quarantine, routing, axes, subspace.stream, seed, rows)


def check_axis(axis: str | None, names: Sequence[str]) -> None:
    """ConfigError for an axis (the value of `monitor.axis`) that is not among `names`, those of the subspace's axes, because
    rules about shifts would then never give a verdict."""
    if axis is not None and axis not in names:
        known = ", ".join([*names[:SHOWN], *["..."] * (len(names) > SHOWN)])
        raise ConfigError(f"monitor.axis={axis} is no axis of the subspace; it has {known}")
