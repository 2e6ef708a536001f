"""Turns prompts into token ids. Extraction, rollouts and evaluation all use this module, so that they see the same prompts.

Not covered: images, and a chat template that draws random numbers.
"""

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.errors import ModelError, reading

Messages = Sequence[Mapping[str, Any]]

SECONDS, CHARACTERS, MEMORY = 10.0, 10**7, 2**32
"""Limits for rendering one prompt by a chat template, which is code that comes with a model: time in seconds, characters of
output, and bytes of memory."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Any], tools: Messages = ()) -> list[list[int]]:
    """Return the token ids of each prompt. A prompt of chat messages goes through the chat template, which is also told of the
    `tools` that the model may call. A plain text gets the special tokens that the tokenizer puts before texts, and not those that
    it puts after them, because these would end the text.

    ModelError for a prompt that is empty or that the tokenizer, its chat template or the model's embedding cannot take.
    """
    encoded, known = [], dict[str, list[int]]()  # the rows of a group share their prompt
    for prompt in prompts:
        if (ids := known.get(key := repr(prompt))) is not None:
            encoded.append(list(ids))
            continue
        if isinstance(prompt, str):
            ids = ids_of(tokenizer, prompt, add_special_tokens=True, return_special_tokens_mask=True)
        else:
            text = render(tokenizer, prompt, tools)
            ids = ids_of(tokenizer, text) if any(message.get("content") for message in prompt) else []
        if not ids:
            raise ModelError(f"a prompt is empty: {prompt!r:.100}; give the model something to read")
        known[key] = ids
        encoded.append(list(ids))
    return encoded


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: Messages = (), *, turn: bool = True) -> str:
    """Return the text that the chat template makes of the messages. `tools`: descriptions of the tools that the model may call.
    `turn`: whether the text goes on to where the model's turn begins. A template that asks for the date gets the tokenizer's
    `clock`. ModelError for any error that the template raises, and for a template that does not end."""
    if not tokenizer.chat_template:
        raise ModelError("the prompts are chat messages but the model's tokenizer has no chat template; choose a model for "
                         "chats, write them as text, or set chat_template in the model folder's tokenizer_config.json")
    with reading(ModelError, f"a prompt is neither text nor chat messages: {messages!r:.100}"):
        roles = ", ".join(str(message["role"]) for message in messages)
    now = getattr(tokenizer, "clock", None) or datetime.now()
    with reading(ModelError, f"the model's chat template cannot show messages of the roles {roles}"), at_most(SECONDS):
        text = cast(str, tokenizer.apply_chat_template(
            [dict(message) for message in messages], tools=[dict(tool) for tool in tools] or None, add_generation_prompt=turn,
            tokenize=False, strftime_now=now.strftime)) if messages else ""
        if len(text) > CHARACTERS:
            raise OverflowError(f"it writes {len(text)} characters")
    return text


def render_apart(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str | None:
    """Render a whole conversation in a process of its own, for a template that is not trusted, and return the text. None if the
    template refuses these messages. ModelError for a template that does not end or fills the memory. Such a template is stopped
    even where `at_most` could not interrupt it."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    if (child := os.fork()) == 0:
        try:
            with suppress(OSError, ValueError):  # a lower limit is set already
                used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
                resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
            theirs.send(render(tokenizer, messages, turn=False))
        except ModelError as error:
            theirs.send(error if isinstance(error.__cause__, (TimeoutError, MemoryError, OverflowError)) else None)
        finally:
            os._exit(0)
    theirs.close()
    found: Any = ModelError(f"the model's chat template does not end within {2 * SECONDS:g} s and {MEMORY >> 30} GiB of memory")
    try:
        with suppress(EOFError):  # the child was killed
            found = ours.recv() if ours.poll(2 * SECONDS) else found
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if isinstance(found, ModelError):
        raise found
    return found


@contextmanager
def decoding_whole(tokenizer: Any) -> Iterator[None]:
    """Inside the block, TRL gives reward functions the whole text of each completion, because the tokenizer's response template
    is taken away. With that template, TRL would leave out parts of a completion, for example the reasoning."""
    template, tokenizer.response_template = getattr(tokenizer, "response_template", None), None
    try:
        yield
    finally:
        tokenizer.response_template = template


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    """Return the token ids of a text, without special tokens at the end. `options` are passed to the tokenizer. ModelError for a
    text that is not valid Unicode, and for an id that has no row in the model's embedding."""
    with reading(ModelError, f"the model's tokenizer cannot read {text!r:.100}"):
        text.encode()  # its error names the wrong character; the tokenizer's would name the type of the text
        found = cast(Any, tokenizer)(text, **{"add_special_tokens": False} | options)
    ids, added = list(found["input_ids"]), found.get("special_tokens_mask", [])
    while ids and added and added[len(ids) - 1]:
        ids.pop()
    rows = getattr(tokenizer, "rows", None)
    if rows is not None and (beyond := [token for token in ids if token >= rows]):
        raise ModelError(f"the text {text!r:.100} has the token {tokenizer.convert_ids_to_tokens(beyond[0])!r}, id {beyond[0]}, "
                         f"but the model's embedding has {rows} rows; leave that token out")
    return ids


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token id that ends a text: the tokenizer's eos first, then further ones that the model's generation config
    has."""
    own, known = cast(int, tokenizer.eos_token_id), cast(Any, model.generation_config).eos_token_id
    return list(dict.fromkeys([own, *([known] if isinstance(known, int) else known or [])]))


def padded(sequences: Sequence[Sequence[int]], pad: int = 0, *, side: Literal["left", "right"] = "right"
           ) -> tuple[Tensor, Tensor]:
    """Return sequences of token ids as one tensor (B, T), padded with the id `pad` on one `side`, and the mask (B, T), which is 1
    at tokens and 0 at padding."""
    ids, mask = ([torch.tensor(row) for row in sequences], [torch.ones(len(row), dtype=torch.long) for row in sequences])
    return (pad_sequence(ids, batch_first=True, padding_value=pad, padding_side=side),
            pad_sequence(mask, batch_first=True, padding_side=side))


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer than this many seconds. This works in the main thread only; in others there is
    no limit. An alarm that was set before the block still rings."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeoutError(f"it takes more than {seconds:g} s")

    before, started = signal.signal(signal.SIGALRM, ring), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), interval)
