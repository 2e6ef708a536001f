"""The settings with which vLLM is started, and checks of the settings of servers that somebody else has started."""

import os
from typing import Any

import torch

from routed_rl.config import RolloutConfig
from routed_rl.errors import RolloutError
from routed_rl.rollout.engine import Lora

BATCHED_TOKENS = 4096
"""Largest number of tokens in one forward pass of vLLM; TRL's value."""


def process_settings(config: RolloutConfig) -> dict[str, str]:
    """The environment variables with which vLLM is started: its memory on a machine without a GPU, and how much it logs."""
    return {"VLLM_CPU_KVCACHE_SPACE": str(config.memory_gb), "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")}


def engine_settings(config: RolloutConfig, lora: Lora | None) -> dict[str, Any]:
    """Arguments of vLLM for both an engine in this process and a server."""
    settings: dict[str, Any] = {"dtype": config.dtype, "generation_config": "vllm", "seed": 0,
                                "max_num_batched_tokens": BATCHED_TOKENS, "logprobs_mode": "processed_logprobs"}
    if config.max_length is not None:
        settings["max_model_len"] = config.max_length
    if not torch.cuda.is_available():
        settings["enforce_eager"] = True
    if lora is not None:
        settings |= {"enable_lora": True, "max_loras": lora.count, "max_lora_rank": lora.rank,
                     "lora_target_modules": lora.modules}
    return settings


def check_settings(url: str, server: dict[str, Any], config: RolloutConfig) -> None:
    """Raise RolloutError if the server at `url` computes in another dtype than `config` says, if TRL cannot use its
    log-probabilities, or if it does not accept new weights. `server` is the server's own description of its settings."""
    dtype = str(server["model_config"]["dtype"]).removeprefix("torch.")
    if dtype != config.dtype:
        raise RolloutError(f"the server at {url} computes in {dtype}, rollout.dtype is {config.dtype}; start it with "
                           f"--dtype {config.dtype}, or set rollout.dtype={dtype}")
    if (mode := server["model_config"]["logprobs_mode"]) != "processed_logprobs":
        raise RolloutError(f"the server at {url} runs with --logprobs-mode {mode}; start it with --logprobs-mode "
                           "processed_logprobs --max-logprobs -1")
    if torch.cuda.is_available() and server.get("weight_transfer_config") is None:
        raise RolloutError(f"the server at {url} takes no weights; start it with --weight-transfer-config "
                           """'{"backend": "nccl"}'""")


def served_lora(servers: list[dict[str, Any]], wanted: Lora | None) -> Lora | None:
    """The adapters that every one of `servers` can hold; None if `wanted` is None, or if some server cannot hold the adapters
    `wanted`. `servers` has each server's own description of its settings."""
    found: list[dict[str, Any]] = [settings for server in servers if (settings := server.get("lora_config"))]
    if wanted is None or len(found) < len(servers):
        return None
    rank, count = (min(settings[key] for settings in found) for key in ("max_lora_rank", "max_loras"))
    modules = set.intersection(*(set(settings.get("target_modules") or ()) for settings in found))
    fits = set(wanted.modules) <= modules and rank >= wanted.rank and count >= wanted.count
    return Lora(rank, sorted(modules), count) if fits else None
