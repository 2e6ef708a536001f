"""Finds the tokens of a completion that lie in spans marked by the completion's score, and gives them other advantages than its
remaining tokens.

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
ROUNDING = 1e-6
"""Rewards count as equal if they differ by at most this share of the largest one, because they are rounded to float32."""


def spans_in(scores: Sequence[Score | None], names: Sequence[str], ids_BC: Tensor, tokenizer: Any) -> Tensor:
    """Return which tokens of the completions `ids_BC` have a character in a span that the row's score marks under one of `names`,
    (B, C) bool."""
    found_BC = torch.zeros(ids_BC.shape, dtype=torch.bool, device=ids_BC.device)
    for row, score in enumerate(scores):
        if spans := [span for name in names for span in score.spans.get(name, ())] if score is not None else []:
            found_BC[row] = tokens_in(spans, ids_BC[row], tokenizer)
    return found_BC


def tokens_in(spans: Sequence[Sequence[int]], ids_C: Tensor, tokenizer: Any) -> Tensor:
    """Return which tokens of a completion have a character in one of the `spans`, (C,) bool. A span is a pair of places in the
    completion's text: the place of the span's first character, and the place behind its last character. A token without text,
    such as an end token, is treated like the token before it."""
    ends = [len(tokenizer.decode(ids_C[:count], skip_special_tokens=True)) for count in range(1, len(ids_C) + 1)]
    found: list[bool] = []
    for start, end in zip([0, *ends], ends, strict=False):
        inside = any(start < last and first < end for first, last in spans)
        found.append(inside if end > start or not found else found[-1])
    return torch.tensor(found, device=ids_C.device)


def check_targets(scores: Sequence[Score | None]) -> None:
    """ConfigError if there are scores but none has both the metric `penalty` and a span `answer`, which reward targeting
    needs."""
    known = [score for score in scores if score is not None]
    if known and not any(PENALTY in score.metrics and ANSWER in score.spans for score in known):
        raise ConfigError(f"baseline.target_rewards=true needs scores with the metric {PENALTY} and the span {ANSWER}, and no "
                          "environment gives both; train on one that does (env=scratchpad), or set baseline.target_rewards=false")


def targeted(scores: Sequence[Score | None], rewards: Sequence[float], in_answer_BC: Tensor, group: int) -> Tensor:
    """Return advantages (B, C) by reward targeting (Drori et al., 2025). Tokens of a row's answer have the advantage of its
    reward; the row's other tokens have the advantage of the reward without the penalty that the score reports. `in_answer_BC`:
    which tokens belong to answers. `group`: rows per group.

    Both advantages are in units of the standard deviation of `rewards` within the group, because otherwise one kind of token
    would count for more. If all these rewards are equal, the unit is the standard deviation of the rewards without penalties.
    ConfigError as in `check_targets`. A row that could not be scored changes no mean of its group.
    """
    check_targets(scores)
    whole_B = torch.tensor(rewards, device=in_answer_BC.device)
    task_B = whole_B - torch.tensor(_penalties(scores, group), device=whole_B.device)
    groups = whole_B.view(-1, group)
    spread, of_task = (each.view(-1, group).std(1, keepdim=True) for each in (whole_B, task_B))
    # The deviation of equal rewards is often no 0 but a rounding error, by which nothing may be divided.
    differ = groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True) > ROUNDING * groups.abs().amax(1, keepdim=True)
    unit = torch.where(differ, spread, of_task)
    return torch.where(in_answer_BC, in_group(whole_B, group, unit)[:, None], in_group(task_B, group, unit)[:, None])


def _penalties(scores: Sequence[Score | None], group: int) -> list[float]:
    """Return the penalty of each row, as its score reports it. A row without a score gets the mean penalty of its group, just as
    it is paid the group's mean reward."""
    found: list[float] = []
    for start in range(0, len(scores), group):
        rows = [None if score is None else score.metrics.get(PENALTY, 0.0) for score in scores[start:start + group]]
        known = [taken for taken in rows if taken is not None]
        mean = sum(known) / len(known) if known else 0.0
        found += [mean if taken is None else taken for taken in rows]
    return found
