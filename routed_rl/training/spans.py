"""Finds the tokens of a completion in spans that its score marks, and gives these tokens their own advantages.

Shape letters: B rows, C tokens of a completion.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from routed_rl.envs import Score
from routed_rl.errors import ConfigError
from routed_rl.training.groups import in_group

PENALTY, ANSWER = "penalty", "answer"


def spans_in(scores: Sequence[Score | None], names: Sequence[str], ids_BC: Tensor, tokenizer: Any) -> Tensor:
    """(B, C) bool: which tokens have a character in a span under one of `names`."""
    found_BC = torch.zeros(ids_BC.shape, dtype=torch.bool, device=ids_BC.device)
    for row, score in enumerate(scores):
        if spans := [span for name in names for span in score.spans.get(name, ())] if score is not None else []:
            found_BC[row] = tokens_in(spans, ids_BC[row], tokenizer)
    return found_BC


def tokens_in(spans: Sequence[Sequence[int]], ids_C: Tensor, tokenizer: Any) -> Tensor:
    """(C,) bool: which tokens of a completion have a character in one of the `spans`, which are pairs (first, last + 1) in its
    text. A token without text, such as the one that ends the text, counts like the token before it."""
    ends = [len(tokenizer.decode(ids_C[:count], skip_special_tokens=True)) for count in range(1, len(ids_C) + 1)]
    found: list[bool] = []
    for start, end in zip([0, *ends], ends, strict=False):
        inside = any(start < last and first < end for first, last in spans)
        found.append(inside if end > start or not found else found[-1])
    return torch.tensor(found, device=ids_C.device)


def check_targets(scores: Sequence[Score | None]) -> None:
    """ConfigError if no score has both a penalty and a span of its answer."""
    known = [score for score in scores if score is not None]
    if known and not any(PENALTY in score.metrics and ANSWER in score.spans for score in known):
        raise ConfigError(f"baseline.target_rewards=true needs scores with the metric {PENALTY} and the span {ANSWER}, and no "
                          "environment gives both; train on one that does (env=scratchpad), or set baseline.target_rewards=false")


def targeted(scores: Sequence[Score | None], rewards: Sequence[float], in_answer_BC: Tensor, group: int) -> Tensor:
    """Advantages (B, C) by reward targeting (Drori et al., 2025): tokens of answers have the advantage of `rewards`, the others
    have that of `rewards` without the penalty that each score reports.

    Both are in units of the standard deviation of `rewards` within the group; otherwise one kind of token would count for more.
    If that is 0, the unit is the deviation of the rewards without penalties. ConfigError if no score has both a penalty and a
    span of its answer.
    """
    check_targets(scores)
    whole_B = torch.tensor(rewards, device=in_answer_BC.device)
    taken = [0.0 if score is None else score.metrics.get(PENALTY, 0.0) for score in scores]
    task_B = whole_B - torch.tensor(taken, device=whole_B.device)
    spread, of_task = (each.view(-1, group).std(1, keepdim=True) for each in (whole_B, task_B))
    unit = torch.where(spread > 0, spread, of_task)
    return torch.where(in_answer_BC, in_group(whole_B, group, unit)[:, None], in_group(task_B, group, unit)[:, None])
