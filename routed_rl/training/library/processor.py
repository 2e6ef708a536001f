"""The argument `processing_class` of a library trainer (one that `import routed_rl` offers): the tokenizer that a script gives,
or the model's tokenizer."""

from typing import Any

from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

from routed_rl.errors import ConfigError, reading
from routed_rl.model.load import check_fits
from routed_rl.training.library.model import path_of


def processor_of(given: Any, model: PreTrainedModel, arguments: Any, revision: str | None) -> Any:
    """Return `given`, or, if it is None, the tokenizer or processor of the model, as TRL would load it. `arguments`: TRL's
    arguments. `revision`: the model's revision on the Hub. ConfigError if there is no tokenizer, if it is a processor of images
    and the model reads none, or if it has no token that ends a completion; ModelError if it has tokens that the model lacks."""
    path = path_of(model)
    if given is None and not path:
        raise ConfigError("processing_class is not given, and the model has no path from which one could be loaded; give the "
                          "model's tokenizer")
    if given is None:
        with reading(ConfigError, f"processing_class is not given, and {path!r} has none"):
            given = AutoProcessor.from_pretrained(path, revision=revision, padding_side="left", truncation_side="left",
                                                  trust_remote_code=arguments.trust_remote_code)
    if isinstance(given, ProcessorMixin) and not hasattr(model.config, "image_token_id"):
        raise ConfigError(f"processing_class is a {type(given).__name__}, and the model reads no images; give the tokenizer in "
                          "it: processor.tokenizer")
    tokenizer: Any = given.tokenizer if isinstance(given, ProcessorMixin) else given  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(f"processing_class={given!r:.60} is a {type(given).__name__}; give the model's tokenizer, such as "
                          "AutoTokenizer.from_pretrained(PATH)")
    if tokenizer.eos_token_id is None:
        raise ConfigError("processing_class has no eos token, so no completion would end; set tokenizer.eos_token to the token "
                          "that ends one")
    if isinstance(tokenizer, PreTrainedTokenizerFast):  # others need not tell which of their tokens are special
        check_fits(tokenizer, len(next(model.get_input_embeddings().parameters())), tokenizer.name_or_path)
    return given
