"""Rollouts of several turns: the turns of the model and the environment's answers to them, as tokens, with a mask of the tokens
that the model generated. Tokens are only ever appended, and text of the model is never tokenised again. Not covered: images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from routed_rl.envs import Conversation
from routed_rl.model.chat import ChatTokens


@dataclass
class Rollout:
    """One row of a rollout: a conversation, or a single turn if `conversation` is None."""

    prompt_ids: list[int]
    conversation: Conversation | None = None
    completion_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    """1 at tokens that the model generated, 0 at those of the environment and the chat template."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probabilities with which the model's tokens were drawn; 0 at other tokens, and everywhere if they are not known."""
    practises: bool = False
    """Whether the deployed model generates this row in training."""

    @property
    def ids(self) -> list[int]:
        """All tokens so far."""
        return self.prompt_ids + self.completion_ids

    def turn(self, ids: list[int], chat: ChatTokens, limit: int, logprobs: list[float] | None = None) -> bool:
        """Append the model's turn `ids`, with the log-probabilities of its tokens, and the environment's answer. Returns False
        when the row is finished. `limit` bounds the number of tokens of the whole completion, answers included."""
        ids = ids[:limit - len(self.completion_ids)]
        self._append(ids, 1, logprobs)
        if self.conversation is None:
            return False
        answer = self.conversation.reply(chat.decode(ids))
        if not answer:
            return False
        between = chat.between(self.conversation.messages, answer, self.conversation.tools)
        if ids and between[:1] == ids[-1:]:
            between = between[1:]  # the model itself ended its turn
        if len(self.completion_ids) + len(between) >= limit:
            self.conversation.cut()
            return False
        self._append(between, 0)
        self.conversation.messages += answer
        return True

    def _append(self, ids: list[int], own: int, logprobs: list[float] | None = None) -> None:
        self.completion_ids += ids
        self.mask += [own] * len(ids)
        self.logprobs += [0.0] * len(ids) if logprobs is None else logprobs[:len(ids)]


Generate = Callable[[list[Rollout]], tuple[list[list[int]], list[list[float]] | None]]
"""Function that maps rows to the token ids with which the model continues each row, and to their log-probabilities (None if not
known)."""


def begin(conversation: Conversation, chat: ChatTokens) -> Rollout:
    """A row for a conversation, before the model's first turn."""
    return Rollout(chat.prompt(conversation.messages, conversation.tools), conversation)


def play(rows: Sequence[Rollout], generate: Generate, chat: ChatTokens, limit: int) -> None:
    """Play all rows to their end. Each call of `generate` makes one turn in every row that is not finished. `limit` is as in
    `Rollout.turn`."""
    live = list(rows)
    while live:
        turns, logprobs = generate(live)
        live = [row for row, ids, known in zip(live, turns, logprobs or [None] * len(live), strict=True)
                if row.turn(ids, chat, limit, known)]
