"""Causal language models and tokenizers from a folder, the hub, or a GGUF file. Full float32 weights only.

`path` is a folder in Hugging Face format, a hub name, `gguf:FILE.gguf`, or `gguf:PACKAGE` (an installed Python package
that carries one `*.gguf` file). Remote code, adapters and quantised weights are not covered: they are refused.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from routed_rl.artifacts import read_json
from routed_rl.errors import ModelError
from routed_rl.model.gguf import GGUF, forget_quantisation, gguf_file, quick_reading
from routed_rl.model.weights import adapter_message, dtype_message, model_hash, require_full_weights

__all__ = ["load_model", "load_tokenizer", "model_hash", "require_full_weights"]

LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")


def load_model(path: str, dtype: str | torch.dtype = "float32") -> PreTrainedModel:
    """The model at `path` in eval mode, every weight float32, saved again by plain `save_pretrained`.

    Its special token ids are those of `load_tokenizer(path)`, and its generation config has no sampling defaults.
    Raises ModelError for another dtype, an adapter, missing weights, or a path that cannot be read.
    """
    if str(dtype).removeprefix("torch.") != "float32":
        raise ModelError(dtype_message(str(dtype)))
    if path.startswith(GGUF):
        path = GGUF + str(gguf_file(path))
    with quick_reading() if path.startswith(GGUF) else contextlib.nullcontext():
        tokenizer = load_tokenizer(path)
        model, found = _read(AutoModelForCausalLM, path, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"]:
        raise ModelError(
            f"model {path!r} lacks the weights {sorted(found['missing_keys'])[:3]}; is the folder complete?"
        )
    if path.startswith(GGUF):
        forget_quantisation(model)
    require_full_weights(model, path)
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # The others leave the cap out (Gemma 2), so an engine would serve another model.
    model.config._name_or_path = path
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)
    return model.eval()


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """The tokenizer at `path`; its eos is the token that ends a turn of its chat template, and it has a pad token."""
    if path.startswith(GGUF):
        tokenizer = copy.deepcopy(_gguf_tokenizer(GGUF + str(gguf_file(path))))
    else:
        tokenizer = _read(PreTrainedTokenizerFast if _is_generic(path) else AutoTokenizer, path)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"tokenizer of {path!r} is a {type(tokenizer).__name__}, which has no tokenizer.json; convert it"
        )
    if tokenizer.chat_template:
        tokenizer.eos_token = _turn_end(tokenizer) or tokenizer.eos_token
    if tokenizer.eos_token is None:
        raise ModelError(f"tokenizer of {path!r} has no eos token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _is_generic(path: str) -> bool:
    """Whether a folder's tokenizer.json is the whole truth; AutoTokenizer would put another pre-tokenizer in its place for
    some model types (qwen2)."""
    file = Path(path).expanduser() / "tokenizer_config.json"
    try:
        return read_json(file).get("tokenizer_class") in GENERIC_TOKENIZERS
    except (OSError, ValueError, AttributeError):
        return False


def _read(kind: Any, path: str, **options: Any) -> Any:
    """`kind.from_pretrained` of what `path` names, silently; whatever goes wrong becomes one line."""
    if path.startswith(GGUF):
        file = gguf_file(path)
        source, options["gguf_file"] = str(file.parent), file.name
        if kind is AutoModelForCausalLM:
            options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        source = _folder_or_hub_name(path)
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except LOAD_ERRORS as error:
        what = "model" if kind is AutoModelForCausalLM else "tokenizer"
        reason = " ".join(str(error).split())[:200]
        if not Path(source).is_dir():
            hub = "the hub is off (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else f"the hub did not give it: {reason}"
            raise ModelError(f"there is no model folder {path!r} here (in {Path.cwd()}), and {hub}") from error
        raise ModelError(f"no {what} could be loaded from {path!r}: {reason}") from error
    finally:
        logging.set_verbosity(level)


def _folder_or_hub_name(path: str) -> str:
    """`path` itself if it may be loaded from; ModelError for a folder that is not there or holds only an adapter."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / "adapter_config.json").exists():
            raise ModelError(adapter_message(path))
        if not (folder / "config.json").exists():
            raise ModelError(f"folder {path!r} has no config.json; give a model folder in Hugging Face format")
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.exists():
        raise ModelError(
            f"there is no model folder {path!r} (looked in {Path.cwd()}); for a GGUF file write gguf:{path}"
        )
    return path


@functools.lru_cache(maxsize=1)
def _gguf_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Kept, because reading a vocabulary out of a GGUF file takes seconds and every command needs it twice."""
    tokenizer = _read(AutoTokenizer, path)
    # GGUF does not say; the default strips spaces before punctuation, which no byte-level vocabulary wants.
    tokenizer.clean_up_tokenization_spaces = tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    return tokenizer


def _turn_end(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The special token that closes an assistant's message in the chat template, if one does."""
    probe = "ROUTED-RL-PROBE"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ids = tokenizer.encode(rendered.rpartition(probe)[2], add_special_tokens=False)
    return next((token for token in tokenizer.convert_ids_to_tokens(ids) if token in special), None)
