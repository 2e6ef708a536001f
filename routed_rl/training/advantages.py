"""Changes the advantages of a generation in arms that do not use TRL's own, and finds flagged rows for label routing."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.model.adapter import plain
from routed_rl.routing import Router
from routed_rl.routing.labels import LabelRouter
from routed_rl.training.baselines import Projection, imitation
from routed_rl.training.baselines.projection import RowsOf
from routed_rl.training.labels import balanced, flags_of
from routed_rl.training.spans import ANSWER, spans_in, targeted
from routed_rl.training.tasks import RewardFunction


class Advantages:
    """Computes a generation's advantages anew. A trainer calls `remake` after each generation; in arms that use TRL's own
    advantages the call changes nothing."""

    def __init__(self, reward: RewardFunction, tokenizer: PreTrainedTokenizerBase, router: Router | None = None,
                 projection: Projection | None = None, *, targets: bool = False) -> None:
        """`reward`: has the scores and rewards of the newest generation. `router`: the run's router, which is used in label
        routing only. `projection`: computes advantages that depend on the persona axis; None if they do not depend on it.
        `targets`: if true, the penalty that a score reports lowers the advantages of the answer's tokens alone, and not those of
        the completion's other tokens."""
        self.reward, self.tokenizer, self.router, self.projection, self.targets = reward, tokenizer, router, projection, targets

    def remake(self, output: dict[str, Any], model: PreTrainedModel, places: Sequence[int], rows_of: RowsOf) -> None:
        """Change `output`, TRL's dict of a generation's tensors, in place. `advantages` becomes (B,) or (B, C), for B rows with C
        tokens of completions; label routing adds `flagged`, (B,) or (B, C). `model`: the policy. `places`: the index of each
        row's environment. `rows_of`: see `RowsOf`."""
        if self.reward.payment is not None and self.reward.payment.settings.imitate:
            output["advantages"] = imitation(output["advantages"], self.reward.payment.imitated)
        if self.projection is not None:
            output["advantages"] = self.projection.advantages(self.projection.of(plain(model), output, rows_of),
                                                              self.reward.rewards, self.reward.failed)
        if self.targets:
            in_answer_BC = spans_in(self.reward.scores, [ANSWER], output["completion_ids"], self.tokenizer)
            # A row that was screened has a score of its own, and must not count in its group's mean either.
            scores = [None if failed else score for score, failed in zip(self.reward.scores, self.reward.failed, strict=True)]
            output["advantages"] = targeted(scores, self.reward.rewards, in_answer_BC, self.reward.group_size)
        if isinstance(self.router, LabelRouter):
            self._label(output, self.router)
        if self.projection is not None or self.targets or self.reward.payment is not None:
            output["advantages"][torch.tensor(self.reward.failed, device=output["advantages"].device)] = 0.0
        if self.reward.payment is not None:
            names = [self.reward.names[place] for place in places]
            self.reward.payment.learned(names, self.reward.scores, output["advantages"])

    def _label(self, output: dict[str, Any], router: LabelRouter) -> None:
        reward, routing = self.reward, router.config
        assert reward.payment is not None
        found = reward.payment.found
        if routing.labels.balanced and routing.labels.route and output["advantages"].dim() == 1:
            output["advantages"] = balanced(output["advantages"], reward.rewards, found, reward.group_size, reward.failed)
        output["flagged"] = flags_of(found, reward.scores, output["completion_ids"], output["completion_mask"], routing,
                                     reward.payment.settings.detector.flags, self.tokenizer)
