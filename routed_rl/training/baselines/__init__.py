"""Published alternatives to routing, built into the same trainers: they change what is detected, paid and learned."""

from routed_rl.training.baselines.checks import check_baseline
from routed_rl.training.baselines.contexts import ContextsMixin, PromptContexts, in_contexts
from routed_rl.training.baselines.detector import Detector, ProbeDetector, check_flags, is_marked
from routed_rl.training.baselines.payment import Payment, imitation
from routed_rl.training.baselines.projection import Projection
from routed_rl.training.baselines.stream import StreamEdit
from routed_rl.training.baselines.trait import TraitAdapter

__all__ = ["ContextsMixin", "Detector", "Payment", "ProbeDetector", "Projection", "PromptContexts", "StreamEdit", "TraitAdapter",
           "check_baseline", "check_flags", "imitation", "in_contexts", "is_marked"]
