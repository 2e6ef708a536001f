"""What a generation's advantages become in arms that make them otherwise than TRL, and which of its rows are flagged."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.routing import Router
from routed_rl.routing.labels import LabelRouter
from routed_rl.training.baselines import Projection, imitation
from routed_rl.training.labels import balanced, flags_of
from routed_rl.training.spans import ANSWER, spans_in, targeted
from routed_rl.training.tasks import RewardFunction


class Advantages:
    """`remake` after each generation; in the default arms it leaves everything as it is."""

    def __init__(self, reward: RewardFunction, tokenizer: PreTrainedTokenizerBase, router: Router | None = None,
                 projection: Projection | None = None, *, targets: bool = False) -> None:
        """`targets`: tokens before an answer do not know of the penalty on it."""
        self.reward, self.tokenizer, self.router, self.projection, self.targets = reward, tokenizer, router, projection, targets

    def remake(self, output: dict[str, Any], model: PreTrainedModel) -> None:
        """Change `output` in place: `advantages`, (B,) or (B, C), and by labels `flagged`, (B,) or (B, C)."""
        if self.reward.payment is not None and self.reward.payment.settings.imitate:
            output["advantages"] = imitation(output["advantages"], self.reward.payment.imitated)
        if self.projection is not None:
            found_B = self.projection.advantages(self.projection.of(model, output), self.reward.rewards)
            found_B[torch.tensor(self.reward.failed, device=found_B.device)] = 0.0  # what teaches nothing
            output["advantages"] = found_B
        if self.targets:
            in_answer_BC = spans_in(self.reward.scores, [ANSWER], output["completion_ids"], self.tokenizer)
            output["advantages"] = targeted(self.reward.scores, self.reward.rewards, in_answer_BC, self.reward.group_size)
        if isinstance(self.router, LabelRouter):
            self._label(output, self.router)

    def _label(self, output: dict[str, Any], router: LabelRouter) -> None:
        reward, routing = self.reward, router.config
        assert reward.payment is not None
        found = reward.payment.found
        if routing.labels.balanced and output["advantages"].dim() == 1:
            output["advantages"] = balanced(output["advantages"], reward.rewards, found, reward.group_size)
        output["flagged"] = flags_of(found, reward.scores, output["completion_ids"], output["completion_mask"], routing,
                                     reward.payment.settings.detector.flags, self.tokenizer)
