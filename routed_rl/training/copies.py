"""Makes `copy.deepcopy` of a trainer's model an independent model."""

import functools
from types import MethodType
from typing import Any

from routed_rl.model.adapter import plain


def make_copyable(model: Any) -> None:
    """Make `copy.deepcopy(model)` an independent model, with a quarantine of its own if the model is routed. `model`: the model
    of a trainer, which may be PEFT's wrapper around one.

    TRL puts a `forward` on the model itself, and `use_base_model` a `disable_adapter`. `deepcopy` copies no functions, so in a
    copy these would run the original model; there the methods of the class run instead.
    """
    for each, name in ((plain(model), "forward"), (model, "disable_adapter")):
        if name in vars(each):
            _bind(each, name)


def _bind(model: Any, name: str) -> None:
    """Replace the method `name` that was put on `model` itself by one that runs it for `model` alone, and the method of the class
    for every copy of `model`."""
    put_on, of_class = vars(model)[name], getattr(type(model), name)

    @functools.wraps(of_class)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return put_on(*args, **kwargs) if self is model else of_class(self, *args, **kwargs)

    setattr(model, name, MethodType(method, model))
