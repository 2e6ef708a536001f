"""The argument `processing_class` of a library trainer: the tokenizer that a script gives, or that of the model."""

from typing import Any

from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

from routed_rl.errors import ConfigError, reading


def processor_of(given: Any, path: str, arguments: Any, revision: str | None) -> Any:
    """Return `given`, or, if it is None, the tokenizer or processor at `path`, as TRL would load it. `path`: that of the model,
    empty if it has none. `arguments`: TRL's. `revision`: that of the model. ConfigError if there is no tokenizer, or if it has no
    token that ends a completion."""
    if given is None and not path:
        raise ConfigError("processing_class is not given, and the model has no path from which one could be loaded; give the "
                          "model's tokenizer")
    if given is None:
        with reading(ConfigError, f"processing_class is not given, and {path!r} has none"):
            given = AutoProcessor.from_pretrained(path, revision=revision, padding_side="left", truncation_side="left",
                                                  trust_remote_code=arguments.trust_remote_code)
    tokenizer = given.tokenizer if isinstance(given, ProcessorMixin) else given  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(f"processing_class={given!r:.60} is a {type(given).__name__}; give the model's tokenizer, such as "
                          "AutoTokenizer.from_pretrained(PATH)")
    if tokenizer.eos_token_id is None:
        raise ConfigError("processing_class has no eos token, so no completion would end; set tokenizer.eos_token to the token "
                          "that ends one")
    return given
