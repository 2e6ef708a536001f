"""Finds the token ids that the chat template puts between the turns of a conversation. The ids of new messages are appended to
those of earlier turns, which never change."""

from typing import cast

from transformers import PreTrainedTokenizerBase

from routed_rl.errors import ModelError
from routed_rl.model.prompts import Messages, encode_prompts, ids_of, render

TURN = "TheModelsTurn7f3a91"
"""The text that stands for the model's turn when the template is rendered. It has only letters and digits, which no template
changes."""


class ChatTokens:
    """Renders parts of a conversation as token ids by the chat template: the prompt, and what stands between two turns of the
    model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def decode(self, ids: list[int]) -> str:
        """Return the text of a turn of the model, decoded as TRL decodes a completion."""
        return cast(str, self.tokenizer.decode(ids, skip_special_tokens=True))

    def prompt(self, messages: Messages, tools: Messages) -> list[int]:
        """Return the token ids of the first messages of a conversation, up to where the model's turn begins. `tools`:
        descriptions of the tools that the model may call. ModelError if there are tools and the template has no place for
        them."""
        ids = encode_prompts(self.tokenizer, [messages], tools)[0]
        if tools and ids == encode_prompts(self.tokenizer, [messages])[0]:
            raise ModelError("the environment has tools but the model's chat template shows none; use a model whose template "
                             "does, or name the tools in the environment's messages")
        return ids

    def between(self, messages: Messages, answer: Messages, tools: Messages) -> list[int]:
        """Return the token ids from the end of the model's last turn to the start of its next turn. `messages`: the conversation
        so far, which ends with the model's last turn. `answer`: the new messages, which stand between the two turns.

        The ids begin with the tokens by which the template ends a turn, even if the model has generated the first of these tokens
        itself; the caller then drops it.
        """
        turn = {**messages[-1], "content": TURN}
        parts = render(self.tokenizer, [*messages[:-1], turn, *answer], tools).split(TURN)
        if len(parts) != 2:
            raise ModelError(f"the model's chat template shows a turn of the model {len(parts) - 1} times; episodes need it once")
        for message in answer:
            if TURN not in render(self.tokenizer, [*messages, {**message, "content": TURN}], tools):
                raise ModelError(f"the model's chat template leaves out messages of the role {message['role']}; answer in the "
                                 "role user, or use a model whose template shows them")
        return ids_of(self.tokenizer, parts[1])
