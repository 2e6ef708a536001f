"""Published alternatives to routing, as seams of the same trainers: what a detector finds, is paid, and is learned."""

from routed_rl.training.baselines.checks import check_baseline
from routed_rl.training.baselines.contexts import ContextsMixin, PromptContexts, imitation
from routed_rl.training.baselines.payment import Payment

__all__ = ["ContextsMixin", "Payment", "PromptContexts", "check_baseline", "imitation"]
