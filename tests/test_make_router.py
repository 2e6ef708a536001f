"""What `make_router` refuses before anything is trained."""

from typing import cast

import pytest

from routed_rl.config import Config, ModelConfig
from routed_rl.errors import ConfigError
from routed_rl.pipeline.build import Parts, make_router
from routed_rl.subspace import Subspace
from tests.builders import tiny


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
