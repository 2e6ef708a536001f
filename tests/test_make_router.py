"""What `make_router` refuses before anything is trained, and at which basis it splits each writer."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from routed_rl.config import Config, ModelConfig, SubspaceConfig
from routed_rl.errors import ConfigError
from routed_rl.pipeline.build import Parts, make_router
from routed_rl.subspace import Provenance, Subspace
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
