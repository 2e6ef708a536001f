"""Provides the base model during training, for code that runs it on the completions that the trained model wrote. The reference
model of a KL term is set up in `training/reference.py` instead.

Not covered: strategies that shard weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers import PreTrainedModel

from routed_rl.config import Config
from routed_rl.model.adapter import plain
from routed_rl.model.load import load_model
from routed_rl.routing import Router
from routed_rl.training.baselines import StreamEdit, TraitAdapter

Edit = StreamEdit | TraitAdapter


class BaseModel:
    """Gives access to the base model. If a LoRA is trained, the base model is the training model `learner` without its LoRA,
    without its quarantine and without `edit`, the temporary change that a baseline makes. If the weights are trained, the base
    model is a frozen copy."""

    def __init__(self, learner: Any, config: Config, router: Router | None, edit: Edit | None) -> None:
        self.learner, self.router, self.edit = learner, router, edit
        self.copy: PreTrainedModel | None = None
        if not config.model.adapter.trains:
            copy: Any = load_model(config.model.path)
            self.copy = copy.to(plain(learner).device).requires_grad_(False)

    @contextmanager
    def reading(self) -> Iterator[PreTrainedModel]:
        """Context manager that yields the base model. The yielded model may be the training model, which computes as the base
        model only until the context ends."""
        if self.copy is not None:
            yield self.copy
            return
        with self.learner.disable_adapter(), left_out(self.router, self.edit):
            yield plain(self.learner)


@contextmanager
def left_out(router: Router | None, edit: Edit | None) -> Iterator[None]:
    """Inside this context, the model runs without the quarantine of `router` and without `edit`, the temporary change that a
    baseline makes to the model. Either argument may be None."""
    was_on = edit is not None and edit.is_on
    with router.quarantine.ablated() if router is not None else nullcontext():
        if edit is not None and was_on:
            edit.off()
        try:
            yield
        finally:
            if edit is not None and was_on:
                edit.on()
