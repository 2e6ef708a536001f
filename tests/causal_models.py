"""Every causal language model of transformers, tiny and with random weights. Not a test itself.

`python -m tests.causal_models` writes docs/models.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from routed_rl.errors import ModelError
from routed_rl.model.families import Family
from routed_rl.model.recognise import WAY_OUT, recognise
from tests.families import make_all_matter

DOCS = Path(__file__).parent.parent / "docs" / "models.md"
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
WIDTH, LAYERS = 32, 4
_BY_SIZE = (
    (64, "vocab_size moe_vocab_size vocab_size_per_layer_input audio_vocab_size max_position_embeddings n_positions n_ctx "
         "max_seq_len context_length encoder_hash_byte_group_vocab original_max_position_embeddings mamba_d_ssm "
         "attention_hidden_size"),
    (WIDTH, "hidden_size d_model n_embd emb_dim embedding_size embedding_dim word_embed_proj_dim input_embedding_size "
            "output_embedding_size lru_width backbone_hidden_size hidden_size_global"),
    (48, "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dim_ff dff d_inner ffn_hidden_size moe_intermediate_size "
         "shared_intermediate_size shared_expert_intermediate_size intermediate_size_mlp expert_ffn_hidden_size "
         "feed_forward_size block_ff_dim block_multiple_of moe_shared_expert_intermediate_size"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
             "num_encoder_layers num_blocks"),
    (4, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_decoder_attention_heads num_encoder_attention_heads mamba_n_heads linear_num_value_heads mamba_num_heads "
        "num_experts num_local_experts n_routed_experts moe_num_experts mamba_d_conv conv_kernel swa_num_attention_heads "
        "linear_num_key_heads index_n_heads conv1d_width"),
    (2, "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok num_experts_per_token moe_topk "
        "moe_k topk_group n_group hc_mult top_k_experts"),
    (1, "num_shared_experts n_shared_experts moe_num_shared_experts first_k_dense_replace moe_layer_start_index n_groups "
        "mamba_n_groups o_groups"),
    (8, "head_dim kv_channels swa_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim attention_head_size dim_head "
        "kv_lora_rank q_lora_rank linear_key_head_dim linear_value_head_dim mamba_d_state state_size ssm_state_size "
        "mamba_d_head mamba_head_dim time_step_rank d_head rotary_dim o_lora_rank index_head_dim mamba_headdim "
        "query_pre_attn_scalar global_head_dim index_topk sliding_window attention_window_size window_size "
        "mamba_chunk_size chunk_size chunk_length hidden_size_per_layer_input"))
SMALL = {name: size for size, names in _BY_SIZE for name in names.split()}
_ALL_HEADS = {"num_key_value_heads": 4}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
_HYBRID = {"layers_block_type": ["linear_attention", "hybrid"] * (LAYERS // 2)}
_SCALED = {"residual_multiplier": 0.22}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
                     "longcat_flash", "minicpm3", "youtu"), _ALL_HEADS),
    **dict.fromkeys(("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared"), _SCALED),
    **dict.fromkeys(("ministral", "nemotron", "hunyuan_v1_dense", "hunyuan_v1_moe"), _HEADS),
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}},
    "zamba": _HYBRID, "zamba2": _HYBRID,
    "qwen4_exp_text": {"layer_types": ["linear_attention"] * LAYERS},
    "bamba": _MAMBA, "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64}, "granitemoehybrid": {**_MAMBA, **_SCALED},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "dots1": {"num_local_experts": 4, "n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
              "n_group": 1, "topk_group": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "lfm2": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "deepseek_v2": {**_ALL_HEADS, "num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "kimi_linear": {**_ALL_HEADS, "topk_group": 1, "num_expert_group": 1},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2)},
}
"""What a type needs beside small sizes, and a constant scale where there can be one."""


PAGE = """# Models

`model.path` takes a folder in Hugging Face format or a name on the Hub: a causal language model of transformers, with weights
in float32, or in bfloat16 below a LoRA. routed_rl must know the *writers*, the modules whose output is added to the residual
stream. It knows them for Llama, Mistral, Qwen2, Qwen3, Phi-3, Gemma 2, Gemma 3, OLMo-2, GPT-2, Mixtral and Qwen3's mixtures.
In models of other types, and where the layers are of a class of your own, it finds them by probing, which runs the model on a few
random tokens, and verifies the result, or it refuses the model in one line.
`model.writers=[self_attn.o_proj,mlp.down_proj]` names them by hand; these names are verified in the same way.
To train a LoRA on a larger model, and to see whether a run fits into memory, read [LoRA](lora.md).

## Weights and tokenizer

Weights that are stored in 16 bits are read into `model.dtype`. A folder may have safetensors or `pytorch_model.bin`, in one
file or in several. `gguf:FILE.gguf` reads a GGUF file and makes its weights dense. Other quantised checkpoints, models with an
encoder, models without a head for language, and models that need code of their own (`trust_remote_code`) are refused. A folder
that holds only a LoRA goes into [`model.adapter.path`](lora.md). A revision on the Hub cannot be named; download it, and give
the folder.

The tokenizer must have a `tokenizer.json` and an eos token. A text ends at the special token that closes the assistant's
message in the chat template or, if there is none, at the tokenizer's eos, and also at every eos id of
`generation_config.json`. The other settings of that file, such as a temperature or a repetition penalty, do not change how the
model generates in training; the deployed model's folder has them again. If there is no pad token, the eos token pads. Plain
text gets the tokens that the tokenizer puts before texts, and chat messages go through the chat template. The template is told
the date (`model.date`) and has its own defaults otherwise, so a reasoning model thinks if its template says so by default.

In the [library](library.md) the model and the tokenizer are used as you have loaded them. A writer needs a weight of its own:
one that `torch.nn.utils.parametrize` or `prune` computes, or that two layers share, is refused.

## Which types are recognised

This table has all {all} causal types of transformers {version}. Each is built from its own config with small sizes and random
weights, and is probed as an unknown type is: {found} are recognised, {refused} are refused, and {unbuilt} do not build from a
config of their own. Your model is probed with its own weights and config, and the result of that counts: a model of a
recognised type is refused if it has dropout between writer and stream, a scale of the whole stream, or another kind of layer.
A slow test trains each recognised type for two steps with routing and compares the result with this table.
`python -m tests.causal_models` writes this page.

In the third column, `times X` says that a writer's output is multiplied by X before it is added to the stream, `norms behind
writers` that it goes through a norm, and `no resid_mid` that no module reads the stream between attention and MLP, so
`subspace.hook=resid_mid` is refused. A reason with "and N more" has N further parameters. Mixtures of experts cannot be rolled
out with vLLM ([rollouts](rollouts.md)).

"""
HEADS = {"found": "| type | writers in a layer | remarks |\n|---|---|---|\n", "refused": "| refused | why |\n|---|---|\n",
         "unbuilt": "| not built | why |\n|---|---|\n"}


def tiny_config(kind: type[PreTrainedConfig], **given: Any) -> PreTrainedConfig:
    """Its defaults, with every size small; parts of its own in the same way."""
    stock = kind()
    known = stock.to_dict()
    small = {name: size for name, size in SMALL.items() if isinstance(known.get(name), int)}
    ids = {name: 1 for name in ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_index", "mask_index")
           if isinstance(known.get(name), int) and known[name] > 1}
    parts = {name: tiny_config(type(part), **SPECIAL.get(part.model_type, {})) for name, part in vars(stock).items()
             if isinstance(part, PreTrainedConfig)}
    return kind(**small | ids | parts | given)


def cannot_build(kind: str) -> str | None:
    """Why a type is not built here, in a few words; None where it is."""
    try:
        tiny_causal(kind)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def tiny_causal(kind: str, seed: int = 0, **given: Any) -> PreTrainedModel:
    """A random model of a type, all of whose parameters matter, in eval mode and without dropout that is not `given`."""
    torch.manual_seed(seed)
    config = tiny_config(CONFIG_MAPPING[kind], **SPECIAL.get(kind, {}), **given)
    for part in (config, config.get_text_config()):
        for name, value in list(vars(part).items()):
            if any(word in name for word in ("dropout", "pdrop", "layerdrop")) and isinstance(value, float) and name not in given:
                setattr(part, name, 0.0)
    model = AutoModelForCausalLM.from_config(config)
    make_all_matter(model, seed)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):  # of the whole stream; 1 where it is not trained
            buffer.fill_(0.9)
    return model.eval()


def remarks(row: Family) -> str:
    """What is between its writers and the stream, and what it has not."""
    said = [f"times {scale:.3g}" for scale in dict.fromkeys(row.scales) if scale != 1]
    said += ["norms behind writers"] if row.post_norms else []
    said += ["no `resid_mid`"] if row.before_mlp is None else []
    return ", ".join(said)


def line_of(kind: str) -> tuple[str, str]:
    """A type's table in docs/models.md, and its line there."""
    if (reason := cannot_build(kind)) is not None:
        return "unbuilt", f"| {kind} | {reason[:150].replace('|', '/').strip()} |\n"
    try:
        row = recognise(tiny_causal(kind))
    except ModelError as error:
        why = str(error).partition(": ")[2].removesuffix(f"; {WAY_OUT}")
        return "refused", f"| {kind} | {why.replace('|', '/')} |\n"
    return "found", f"| {kind} | {', '.join(f'`{writer}`' for writer in row.writers)} | {remarks(row)} |\n"


def main() -> None:
    """Write docs/models.md: every type, recognised, refused, or not built and why."""
    lines: dict[str, list[str]] = {name: [] for name in HEADS}
    for kind in TYPES:
        table, line = line_of(kind)
        lines[table].append(line)
    counts = {name: len(found) for name, found in lines.items()}
    page = PAGE.format(version=transformers.__version__, all=len(TYPES), **counts)
    DOCS.write_text(page + "\n".join(HEADS[name] + "".join(found) for name, found in lines.items()))


if __name__ == "__main__":
    main()
