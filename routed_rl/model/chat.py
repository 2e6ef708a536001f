"""The chat template between the turns of a conversation: messages to token ids that are appended, never made anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from routed_rl.errors import ModelError
from routed_rl.model.prompts import encode_prompts

TURN = "TheModelsTurn7f3a91"
"""Stands for the model's own words while the template is rendered: letters and digits, which no template changes."""

Messages = Sequence[Mapping[str, Any]]


class ChatTokens:
    """A tokenizer's chat template as tokens: the prompt, and what comes between two turns of the model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def decode(self, ids: list[int]) -> str:
        """The model's words, as TRL decodes a completion."""
        return cast(str, self.tokenizer.decode(ids, skip_special_tokens=True))

    def prompt(self, messages: Messages, tools: Messages) -> list[int]:
        """Ids of the first messages, ready for the model's turn; ModelError where the template has no place for tools."""
        if not tools:
            return encode_prompts(self.tokenizer, [list(messages)])[0]
        rendered = self._render(messages, tools)
        if rendered == self._render(messages, ()):
            raise ModelError("the environment has tools but the model's chat template shows none; use a model whose template "
                             "does, or name the tools in the environment's messages")
        return self._ids(rendered)

    def between(self, messages: Messages, answer: Messages, tools: Messages) -> list[int]:
        """Ids from the end of the model's last turn (`messages` ends with it) to the start of its next one.

        They begin with what the template ends a turn with, which the model may have generated itself.
        """
        turn = {**messages[-1], "content": TURN}
        parts = self._render([*messages[:-1], turn, *answer], tools).split(TURN)
        if len(parts) != 2:
            raise ModelError(f"the model's chat template shows a turn of the model {len(parts) - 1} times; episodes need it once")
        for message in answer:
            if TURN not in self._render([*messages, {**message, "content": TURN}], tools):
                raise ModelError(f"the model's chat template leaves out messages of the role {message['role']}; answer in the "
                                 "role user, or use a model whose template shows them")
        return self._ids(parts[1])

    def _render(self, messages: Messages, tools: Messages) -> str:
        try:
            return cast(str, self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=True, tokenize=False))
        except Exception as error:  # jinja's own, or what a template raises
            roles = ", ".join(str(message["role"]) for message in messages)
            raise ModelError(f"the model's chat template cannot show messages of the roles {roles}: "
                             f"{type(error).__name__}: {error}") from error

    def _ids(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"])
