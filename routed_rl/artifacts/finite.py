"""Finds a tensor in a folder that is not finite. torch is imported only when a folder is searched, because commands that only
read reports do not need it."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATES = ("optimizer.pt", "value_head.pt")
"""Files of a checkpoint that hold tensors beside the weights. A file that torch does not load as plain tensors is skipped here,
because the code that loads the checkpoint checks it."""


def first_nonfinite(folder: Path) -> str | None:
    """The first tensor with nan or inf in a folder's weights, quarantine and optimizers, as `TENSOR in FILE`; None if there is
    none."""
    for file, name, value in _tensors(folder):
        if value.is_floating_point() and not value.isfinite().all():
            return f"{name} in {file}"
    return None


def _tensors(folder: Path) -> Iterator[tuple[str, str, Any]]:
    import torch
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as stored:
            yield from ((path.name, name, stored.get_tensor(name)) for name in stored.keys())  # noqa: SIM118
    for path in (folder / name for name in STATES):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if path.exists() else None
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            continue
        yield from ((path.name, name, value) for name, value in _inside(state, "") if isinstance(value, torch.Tensor))


def _inside(tree: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of `tree`, nested dicts and lists, each with its path. The paths begin with `place`."""
    if isinstance(tree, (dict, list, tuple)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _inside(value, f"{place}.{key}".lstrip("."))
    else:
        yield place, tree
