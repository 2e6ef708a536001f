"""Real vLLM for the slow tests: tiny models, engines, and whole commands. Not a test itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from routed_rl.config import AdapterConfig, ParityConfig, RolloutConfig
from routed_rl.model.adapter import attach
from routed_rl.model.base import adapted_modules
from routed_rl.model.targets import find_writers, freeze
from routed_rl.rollout import ParityCheck, PolicyAdapters, PolicyWeights, Served, fixed_sequences, lora_for, open_engine
from routed_rl.routing import RoutingContext
from routed_rl.routing.quarantine import Quarantine
from tests.builders import FROZEN, find_targets, random_bases
from tests.chat import chat_tokenizer

ROOT = Path(__file__).parent.parent.parent
VOCABULARY = 64
TWO = ["trainer.per_device_train_batch_size=128", "launch.processes=2"]
"""The lab's batch, halved."""
MODES = pytest.mark.parametrize("mode", [["rollout=vllm_colocate"], ["rollout=vllm_server", "rollout.launch=true"]],
                                ids=["colocate", "server"])
_COMMON = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=0)
MODELS = {"llama, heads of 16": LlamaConfig(**_COMMON),
          "llama, tied": LlamaConfig(**_COMMON, head_dim=32, tie_word_embeddings=True),
          "qwen2, biases": Qwen2Config(**_COMMON | {"num_attention_heads": 2}),
          "qwen3, heads of 32": Qwen3Config(**_COMMON, head_dim=32),
          "mistral": MistralConfig(**_COMMON | {"num_attention_heads": 2}),
          "olmo2": Olmo2Config(**_COMMON | {"num_attention_heads": 2}),
          "phi3": Phi3Config(**_COMMON | {"num_attention_heads": 2}),
          # As `load_model` reads it.
          "gemma2": Gemma2Config(**_COMMON, head_dim=32, query_pre_attn_scalar=32, attn_implementation="eager"),
          "gemma3": Gemma3TextConfig(**_COMMON, head_dim=32, query_pre_attn_scalar=32),
          "gpt2, biases": GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=2, n_positions=128, bos_token_id=0,
                                     eos_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)}


class Setup:
    """A routed model in training and an engine that serves it. `lora`: settings of the LoRA that is trained in place of the
    weights."""

    def __init__(self, name: str, folder: Path, frozen: list[str] = FROZEN, lora: dict[str, Any] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model: Any = AutoModelForCausalLM.from_config(MODELS[name])
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else parameter + 0.1 * noise)
        self.folder, self.context, self.lora = folder, RoutingContext(), lora
        self.model.eval().save_pretrained(folder)
        chat_tokenizer().save_pretrained(folder)  # a server wants one
        if lora is not None:
            attach(self.model, AdapterConfig(kind="lora", **lora), find_writers(self.model), 1)
        self.targets = find_targets(self.model, random_bases(2, 64), self.context, 1)
        self.quarantine = Quarantine(self.targets, ["a"], self.context)
        freeze(self.model, frozen)

    def move(self, size: float = 0.02) -> None:
        """As three steps of training would: every trainable weight, and the quarantine."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(size * torch.randn(parameter.shape, generator=generator))
            for target in self.targets:
                target.coefficients.add_(0.1 * torch.randn(target.coefficients.shape, generator=generator))

    @contextmanager
    def serve(self, **settings: Any) -> Iterator[tuple[Served, ParityCheck]]:
        biased = any(target.has_bias for target in self.targets)  # vLLM has no adapters for such
        names, own = [target.name for target in self.targets], self.lora or {"r": 0}
        lora = None if biased else lora_for(3 + own["r"], [*names, *adapted_modules(self.model)], 1 if self.lora is None else 2)
        config = RolloutConfig(**{"engine": "vllm_colocate"} | settings)
        with open_engine(config, self.folder, lora) as engine:
            models = PolicyWeights if self.lora is None else PolicyAdapters
            served = Served(engine, models(self.model, self.targets))
            sequences = fixed_sequences([[3, 4, 5], [6, 7], [8] * 20], VOCABULARY, 100)
            yield served, ParityCheck(served, self.model, sequences, ParityConfig(), self.quarantine.ablated)


def command(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """`routed-rl` in a process of its own."""
    return subprocess.run([sys.executable, "-m", "routed_rl.cli", *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=timeout, env=os.environ | {"OMP_NUM_THREADS": "1"})


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained_smollm2(run: Path, *overrides: str) -> list[dict[str, Any]]:
    """The metrics of a run of SmolLM2 whose engine is compared with the trainer at every rollout."""
    done = command("train", "experiment=smollm2", *overrides, "trainer.per_device_train_batch_size=8", "trainer.save_steps=100",
                   "evaluation.samples=8", "rollout.parity.every=1", f"out={run}", timeout=2600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(run)
    print([(row["parity/policy"], row["parity/deployed"], row["time/sync_s"]) for row in rows])
    assert all(row["parity/policy"] < 1e-3 and row["parity/deployed"] < 1e-3 for row in rows)
    return rows


def asked(url: str) -> float:
    """How many requests a server has answered."""
    lines = requests.get(f"{url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:request_success_total"))


def servers_of(pid: int) -> list[int]:
    """Processes that descend from `pid` and are `vllm serve`, its parts included; not the guard above it."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return [child for child in found[1:] if "guard.py" not in names[child]
            and (names[child].startswith("VLLM::") or "vllm.entrypoints.cli.main" in names[child])]
