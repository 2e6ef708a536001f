"""Tiny random models of every family that can be routed. Not a test itself.

The conformance suite is every test with `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

WIDTH, VOCAB = 16, 32
_COMMON = dict(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2,
               max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=0, attn_implementation="sdpa")
CONFIGS: dict[str, Callable[..., object]] = {
    "llama": lambda **k: LlamaConfig(**_COMMON, **k),
    "mistral": lambda **k: MistralConfig(**_COMMON, **k),
    "qwen2": lambda **k: Qwen2Config(**_COMMON, **k),
    "qwen3": lambda **k: Qwen3Config(**_COMMON, head_dim=8, **k),
    "gemma2": lambda **k: Gemma2Config(**_COMMON, head_dim=8, query_pre_attn_scalar=8, **k),
    "gemma3": lambda **k: Gemma3TextConfig(**_COMMON, head_dim=8, query_pre_attn_scalar=8, **k),
    "phi3": lambda **k: Phi3Config(**_COMMON, **k),
    "olmo2": lambda **k: Olmo2Config(**_COMMON, **k),
    # `eager`: the order in which a routed mixture adds up; both of Qwen3's kinds of layer.
    "mixtral": lambda **k: MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2,
                                         experts_implementation="eager", **k),
    "qwen3_moe": lambda **k: Qwen3MoeConfig(**_COMMON, head_dim=8, num_experts=3, num_experts_per_tok=2, norm_topk_prob=True,
                                            moe_intermediate_size=12, mlp_only_layers=[0], experts_implementation="eager", **k),
    "gpt2": lambda num_hidden_layers, **k: GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=num_hidden_layers, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1,
        attn_implementation="sdpa", **({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} | k)),
}
FAMILIES = tuple(CONFIGS)


@torch.no_grad()
def make_all_matter(model: PreTrainedModel, seed: int) -> None:
    """Random weights with which layers, gains and biases all do something (the stock initialisation makes most no-ops)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise * 0.8 / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.2 * noise)


def tiny(family: str, *, seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float32, **config) -> PreTrainedModel:
    """A random model, see `make_all_matter`."""
    model = AutoModelForCausalLM.from_config(CONFIGS[family](num_hidden_layers=layers, **config))
    make_all_matter(model, seed)
    return model.to(dtype).eval()
