"""Published alternatives to routing, as seams of the same trainers: what a detector finds, is paid, and is learned."""

from routed_rl.training.baselines.checks import check_baseline
from routed_rl.training.baselines.contexts import ContextsMixin, PromptContexts
from routed_rl.training.baselines.payment import Payment, imitation
from routed_rl.training.baselines.stream import StreamEdit

__all__ = ["ContextsMixin", "Payment", "PromptContexts", "StreamEdit", "check_baseline", "imitation"]
