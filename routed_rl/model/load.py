"""Loads causal language models and tokenizers from a folder, the hub, or a GGUF file. Weights are float32, or bfloat16 if they
are frozen.

`path` is a folder in Hugging Face format, a hub name, `gguf:FILE.gguf`, or `gguf:PACKAGE` (an installed Python package that
carries one `*.gguf` file). Remote code, adapters and quantised weights are not covered: they are refused.
"""

import contextlib
import copy
import functools
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging

from routed_rl.artifacts import ADAPTER_CONFIG, read_object, require_seal, write_json
from routed_rl.errors import ConfigError, ModelError, reading
from routed_rl.model.fourbit import compute_alike, four_bit
from routed_rl.model.gguf import GGUF, forget_quantisation, gguf_file, quick_reading
from routed_rl.model.prompts import render_apart
from routed_rl.model.weights import adapter_message, dtype_message, require_full_weights

GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
QUANTISED = ("quantization_config", "compression_config")
QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""`QUANTISED` and `QUANTISED_FILES`: keys of a folder's config.json, and names of files beside it, which show that the folder's
weights are quantised."""


def load_model(path: str, dtype: str | torch.dtype = "float32", *, frozen: bool = False, packed: bool = False) -> PreTrainedModel:
    """Load the model at `path` in eval mode, with every weight in `dtype`: float32 or, if `frozen` says that the weights are not
    trained, bfloat16. `packed`: whether the weights of linear layers are quantised to 4 bit. `save_pretrained` can save the model
    as usual.

    The model gets the special token ids of `load_tokenizer(path)`. Every id at which the stored generation config stops also ends
    a text. The other settings of the stored generation config do not affect how the model generates; `write_generation_config`
    writes them to a folder. ModelError for another dtype, an adapter, quantised or missing weights, or a path that cannot be
    read; CheckpointError for a folder that was changed after it was sealed.
    """
    kind = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if frozen else {})
    if (name := str(dtype).removeprefix("torch.")) not in kind:
        raise ModelError(dtype_message(name))
    if path.startswith(GGUF):
        if packed:
            raise ConfigError(f"model.path={path} is a GGUF file, which is not quantised anew; set model.adapter=lora")
        path = GGUF + str(gguf_file(path))
    require_seal(Path(path).expanduser())
    with quick_reading() if path.startswith(GGUF) else contextlib.nullcontext():
        tokenizer = load_tokenizer(path)
        how: dict[str, Any] = {"quantization_config": four_bit(kind[name])} if packed else {}
        model, found = _read(AutoModelForCausalLM.from_pretrained, path, dtype=kind[name], output_loading_info=True, **how)
    if found["missing_keys"]:
        raise ModelError(f"model {path!r} lacks the weights {sorted(found['missing_keys'])[:3]}; is the folder complete?")
    if path.startswith(GGUF):
        forget_quantisation(model)
    if packed:
        compute_alike(model)
    require_full_weights(model, path, kind[name], packed=packed)
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # others leave the cap out (Gemma 2), so an engine would serve another model
    model.config._name_or_path = path
    stored = {} if path.startswith(GGUF) else json.loads(model.generation_config.to_json_string())
    ends, rows = stored.get("eos_token_id"), model.get_input_embeddings().num_embeddings
    known = [token for token in (ends if isinstance(ends, list) else [ends]) if isinstance(token, int) and 0 <= token < rows]
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *known]))
    ids = {name: getattr(tokenizer, name) for name in SPECIAL_IDS} | {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    for key, value in ids.items():  # some configs take no None, and then keep what they have
        with contextlib.suppress(StrictDataclassFieldValidationError) if value is None else contextlib.nullcontext():
            setattr(model.config, key, value)
    model.generation_config = GenerationConfig(**ids)
    # Not in the model's own generation config, from which `generate` would take settings that a caller leaves open.
    kept = {name: value for name, value in stored.items() if not name.startswith("_")}
    model.generation_settings = kept | {name: value for name, value in ids.items() if value is not None}
    return model.eval()


def has_weights(path: str) -> bool:
    """Whether weights may be loaded from `path`. False only for a folder without a file of weights."""
    folder = Path(path).expanduser()
    return not folder.is_dir() or any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir())


def empty_model(path: str, dtype: str) -> PreTrainedModel:
    """Make the model that the config.json at `path` describes, on the device "meta", where tensors have shapes but no
    contents."""
    with reading(ModelError, f"no model could be made of {path!r}/config.json"), torch.device("meta"):
        config = _read(AutoConfig.from_pretrained, path, "config")
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def write_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the generation settings that `load_model` found with the model, and every id that ends a text, into a folder that
    `save_pretrained` has written."""
    if (settings := getattr(model, "generation_settings", None)) is not None:
        write_json(folder / "generation_config.json", settings)


def load_tokenizer(path: str, date: str | None = None) -> PreTrainedTokenizerFast:
    """Load the tokenizer at `path`. Its eos is the token that ends a turn in its chat template, and it always has a pad token.

    The tokenizer gets two attributes: `clock`, which is the date for a chat template that asks for one (`date` in ISO form, or
    now if that is None), and `rows`, the number of rows of the model's embedding. ModelError for a tokenizer that cannot be read,
    has no eos, or has tokens that the embedding lacks.
    """
    if path.startswith(GGUF):
        tokenizer, rows = copy.deepcopy(_gguf_tokenizer(GGUF + str(gguf_file(path)))), None
    else:
        rows = _rows(path)
        kind = PreTrainedTokenizerFast if _is_generic(path) else AutoTokenizer
        tokenizer = _read(kind.from_pretrained, path, "tokenizer")
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"tokenizer of {path!r} is a {type(tokenizer).__name__}, which has no tokenizer.json; convert it")
    tokenizer.clock, tokenizer.rows = datetime.fromisoformat(date) if date else datetime.now(), rows
    if tokenizer.chat_template:
        tokenizer.eos_token = _turn_end(tokenizer) or tokenizer.eos_token
    if tokenizer.eos_token is None:
        raise ModelError(f"tokenizer of {path!r} has no eos token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if rows is not None:
        check_fits(tokenizer, rows, path)
    return tokenizer


def check_fits(tokenizer: PreTrainedTokenizerFast, rows: int, path: str) -> None:
    """ModelError if the tokenizer has tokens for which the embedding, with this number of `rows`, has no row. A special token may
    lack a row unless it begins, ends or pads texts; an example is an image token in a model for text. `encode_prompts` refuses a
    prompt that has such a token."""
    own = {int(getattr(tokenizer, name)) for name in SPECIAL_IDS if getattr(tokenizer, name) is not None}
    special = {place for place, token in tokenizer.added_tokens_decoder.items() if token.special}
    if (largest := max(own | set(tokenizer.get_vocab().values()) - special)) >= rows:
        raise ModelError(f"tokenizer of {path!r} has the token {tokenizer.convert_ids_to_tokens(largest)!r}, id {largest}, but "
                         f"the model's embedding has {rows} rows; use the tokenizer of this model, or enlarge the embedding "
                         "(resize_token_embeddings)")


def _is_generic(path: str) -> bool:
    """Whether the tokenizer.json at `path`, a folder or a name on the hub, describes the tokenizer completely: whether
    tokenizer_config.json names a generic class. For some model types (qwen2) AutoTokenizer would replace the pre-tokenizer of
    such a tokenizer."""
    try:
        return get_tokenizer_config(_folder_or_hub_name(path)).get("tokenizer_class") in GENERIC_TOKENIZERS
    except Exception:  # loading the tokenizer will say what is wrong
        return False


def _rows(path: str) -> int | None:
    """Return the number of rows of the model's embedding, read from its config.json alone; None if config.json has no vocab_size.
    ModelError if config.json describes a model that cannot be trained."""
    with reading(ModelError, f"no model could be loaded from {path!r}: config.json is damaged"):
        config = _read(PreTrainedConfig.get_config_dict, path)[0]
        kind, parts = config.get("model_type"), [config, *(part for part in config.values() if isinstance(part, dict))]
        beside = [name for name in QUANTISED_FILES if Path(path, name).expanduser().exists()]
        for how in [*(part[key] for part in parts for key in QUANTISED if part.get(key)), *beside]:
            method = how.get("quant_method", "unknown method") if isinstance(how, dict) else how
            raise ModelError(f"{path!r} has quantised weights ({method}), and only full weights are read; give the model that it "
                             "was made from (model.adapter=qlora quantises it), or save a float32 copy first")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (kind in CONFIG_MAPPING_NAMES or "auto_map" in config):
            why = (f"models of type {kind} have no head for causal language" if kind in CONFIG_MAPPING_NAMES else
                   "it needs code of its own (trust_remote_code), which is not run")
            raise ModelError(f"no model could be loaded from {path!r}: {why}; give a causal language model that transformers has")
        settings = Path(path, "generation_config.json").expanduser()
        if settings.is_file() and read_object(settings, {}) is None:
            raise ModelError(f"no model could be loaded from {path!r}: generation_config.json, which says where a text ends, is "
                             "damaged; take another copy of the model")
        return next((rows for part in parts if isinstance(rows := part.get("vocab_size"), int)), None)


def _read(load: Callable[..., Any], path: str, what: str = "model", **options: Any) -> Any:
    """Load the model or the tokenizer (`what`) at `path` by the function `load`, with `options`, and return it. Nothing is
    printed. Any error becomes a ModelError of one line."""
    if path.startswith(GGUF):
        file = gguf_file(path)
        source, options["gguf_file"] = str(file.parent), file.name
        if what == "model":
            options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        source = _folder_or_hub_name(path)
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    failed = f"no {what} could be loaded from {path!r}"
    if not Path(source).is_dir():
        hub = "the hub is off (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else "the hub did not give it"
        failed = f"there is no model folder {path!r} here (in {Path.cwd()}), and {hub}"
    try:
        with reading(ModelError, failed):
            return load(source, trust_remote_code=False, **options)
    finally:
        logging.set_verbosity(level)


def _folder_or_hub_name(path: str) -> str:
    """Return `path`, in which a leading ~ is expanded, if a model may be loaded from it. ModelError for a folder that does not
    exist or holds only an adapter."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / ADAPTER_CONFIG).exists():
            raise ModelError(adapter_message(path))
        if not (folder / "config.json").exists():
            raise ModelError(f"folder {path!r} has no config.json; give a model folder in Hugging Face format")
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.exists():
        raise ModelError(f"there is no model folder {path!r} (looked in {Path.cwd()}); for a GGUF file write gguf:{path}")
    return path


@functools.lru_cache(maxsize=1)
def _gguf_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Read the tokenizer in a GGUF file. The result is cached, because reading the vocabulary takes seconds and every command
    needs the tokenizer twice."""
    tokenizer = _read(AutoTokenizer.from_pretrained, path, "tokenizer")
    # GGUF does not store this. The default strips spaces before punctuation, which is wrong for a byte-level vocabulary.
    tokenizer.clean_up_tokenization_spaces = tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    return tokenizer


def _turn_end(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Return the special token that closes an assistant's message in the chat template; None if no special token does."""
    probe = "ROUTED-RL-PROBE"
    messages = [{"role": "system", "content": "?"}, {"role": "user", "content": "?"}, {"role": "assistant", "content": probe}]
    # Some templates refuse a system message, others require one.
    rendered = render_apart(tokenizer, messages[1:]) or render_apart(tokenizer, messages) or ""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    _, shown, end = rendered.rpartition(probe)
    if not shown:  # the template leaves out or changes what the assistant says
        return None
    ids = tokenizer.encode(end, add_special_tokens=False)
    return next((token for token in tokenizer.convert_ids_to_tokens(ids) if token in special), None)
