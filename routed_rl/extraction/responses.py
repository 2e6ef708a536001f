"""Samples responses of a model, and computes the mean of its stream over their tokens.

Activations are read while a response is generated, so no token is run twice. Not covered: top-k and top-p.
"""

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.errors import SubspaceError
from routed_rl.model.prompts import padded
from routed_rl.model.stream import reading


@dataclass(frozen=True)
class Respond:
    """The settings for sampling responses."""

    tokens: int
    """The largest number of tokens in a response. A response has at least one token, because a token that ends it cannot be
    sampled first."""
    temperature: float
    """The temperature of sampling; with 0 the most likely token is taken."""
    ends: tuple[int, ...]
    """The token ids that end a response. They are not part of the response."""


def require_responses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """SubspaceError if `respond` cannot sample responses of this model."""
    if (why := why_silent(model, tokenizer)) is not None:
        raise SubspaceError(f"{why}subspace.tokens=prompt_end")


def why_silent(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The reason why `respond` cannot sample responses of this model, up to the setting that helps; None if it can."""
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return (f"a {model.config.model_type} model does not keep its states in past_key_values, so no responses are sampled "
                "from it; set ")
    if tokenizer.eos_token_id is None:
        return "the tokenizer has no eos token, so no response would end; set tokenizer.eos_token, or set "
    return None


@torch.no_grad()
def respond(model: PreTrainedModel, sequences: list[tuple[int, ...]], settings: Respond, generator: torch.Generator,
            hook: str = "resid_post") -> tuple[list[list[int]], Tensor]:
    """Sample one response to each of B prompts, `sequences` of token ids. Returns the token ids of the responses, and the mean of
    the stream over exactly these tokens at the hook point `hook` of each layer, (L, B, D), on the CPU.

    The responses depend on the generator, and on which prompts are run together. SubspaceError if a prompt leaves no room for a
    response.
    """
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    if (length := max(map(len, sequences))) + settings.tokens > room:
        raise SubspaceError(f"a prompt of {length} tokens and subspace.response_tokens={settings.tokens} are more than the model "
                            f"takes, {room}; lower subspace.response_tokens, or shorten personas and questions")
    ids, mask = (each.to(model.device) for each in padded(sequences, settings.ends[0], side="left"))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = cast(Any, model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    speaking = torch.ones(len(sequences), dtype=torch.bool)
    responses: list[list[int]] = [[] for _ in sequences]
    newest: list[Tensor] = []
    total_LBD = torch.zeros(1)
    with reading(model, lambda stream: newest.append(stream[:, -1].float().cpu()), hook):
        for step in range(settings.tokens):
            logits = output.logits[:, -1].float().cpu()
            if step == 0:
                logits[:, list(settings.ends)] = -torch.inf
            token = logits.argmax(1) if settings.temperature == 0 else torch.multinomial(
                (logits / settings.temperature).softmax(1), 1, generator=generator).squeeze(1)
            speaking &= ~torch.isin(token, torch.tensor(settings.ends))
            if not speaking.any():
                break
            for row in speaking.nonzero().squeeze(1).tolist():
                responses[row].append(int(token[row]))
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            positions = positions[:, -1:] + 1
            newest.clear()
            output = cast(Any, model)(input_ids=token.unsqueeze(1).to(model.device), attention_mask=mask, position_ids=positions,
                                      past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
            total_LBD = total_LBD + torch.stack(newest) * speaking.unsqueeze(1)
    return responses, total_LBD / torch.tensor([len(response) for response in responses]).unsqueeze(1)
