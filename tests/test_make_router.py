"""What `make_router` refuses before anything is trained, and at which basis it splits each writer."""

import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from routed_rl.config import Config, ModelConfig, RoutingConfig, SubspaceConfig
from routed_rl.errors import ConfigError
from routed_rl.model.targets import find_writers
from routed_rl.pipeline.build import Parts, make_router
from routed_rl.subspace import Provenance, Subspace
from routed_rl.training.route import route_model
from tests.builders import WIDTH, tiny


def route(family: str, **settings) -> None:
    parts = Parts(Config(**settings), tiny(family), None, [], "")  # pyright: ignore[reportArgumentType]
    make_router(parts, cast(Subspace, object()))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("coefficient", [{}, {"router_aux_loss_coef": 0.01}])
def test_a_mixture_with_a_loss_that_mixes_rows_is_refused(family, coefficient):
    with pytest.raises(ConfigError, match=r"set trainer\.router_aux_loss_coef=0"):
        route(family, trainer=coefficient)


def test_a_mixture_without_it_and_a_model_that_has_none_are_not():
    for family, trainer in (("mixtral", {"router_aux_loss_coef": 0.0}), ("llama", {})):
        with pytest.raises(AttributeError, match="writer_bases"):  # It came as far as asking the subspace for bases.
            route(family, trainer=trainer)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_gains_between_writers_and_stream_that_train_are_refused(family):
    with pytest.raises(ConfigError, match="add post_norm to model.freeze"):
        route(family, model=ModelConfig(freeze=["embedding"]))


def read_at(hook: str, layers: int = 3) -> Subspace:
    """A subspace whose direction at layer l, also its axis, is the l-th unit vector."""
    columns = [torch.eye(WIDTH)[:, [layer]] for layer in range(layers)]
    return Subspace(columns, columns, ["persona"], torch.ones(layers, 1), torch.arange(1.0, layers + 1),
                    torch.zeros(layers, 4, WIDTH),
                    Provenance("file", "", "", WIDTH, layers, 1, details={"hook": hook}), spreads=[torch.ones(1)] * layers)


def test_completions_and_the_ledger_weigh_layers_by_the_axis_along_which_they_are_measured():
    """Not by the first axis; the gap between the personas along it may be next to nothing where another has all of its own."""
    rows = [{"auroc": {"persona": first, "other": other}} for first, other in ((1.0, 0.5), (0.5, 0.5), (0.5, 1.0))]
    one = read_at("resid_post")
    subspace = dataclasses.replace(one, axes=[axes.repeat(1, 2) for axes in one.axes], axis_names=["persona", "other"],
                                   scales=one.scales.repeat(1, 2), quality={"axes": {"layers": rows}})
    for name, counts in (("persona", 0), ("other", 2)):
        model = tiny("llama", layers=3)
        router = route_model(model, find_writers(model), subspace, RoutingConfig(), ["a"], bases=list(subspace.directions),
                             frozen=[], axis=name, seed=0)
        assert router.rows is not None
        assert [target.place for target in router.quarantine.targets if router.rows.axes_K[target.name].any()] == [counts] * 2
        assert router.book.axes.weights.T.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(("hook", "places"), [
    ("resid_post", [0, 0, 1, 1, 2, 2]), ("resid_pre", [1, 1, 2, 2, 2, 2]), ("resid_mid", [0, 1, 1, 2, 2, 2])])
def test_a_writer_is_split_at_what_was_read_first_after_it_had_added_its_output(hook, places):
    for layout in ("per_layer", "spanning"):
        config = Config(subspace=SubspaceConfig(layout=layout))
        model = tiny("llama", layers=3)
        parts = Parts(config, model, None, [SimpleNamespace(name="a", probe=False, weights=[(0, 1.0)])], "")  # pyright: ignore
        router = make_router(parts, read_at(hook))
        assert router is not None and router.rows is not None
        for target, place in zip(router.quarantine.targets, places, strict=True):
            basis = target.pair.basis
            read = torch.zeros(WIDTH)
            read[place:3 if layout == "spanning" else place + 1] = 1
            torch.testing.assert_close((basis @ basis.mT).diagonal(), read)
            assert target.unit == place + 1
            reached = basis @ router.rows.axes_K[target.name]
            assert bool(reached[place]) and not reached[:place].any(), "its shift counts where it was read"
