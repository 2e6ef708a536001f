"""Published alternatives to routing, called baselines, built into the same trainers. They change the reward, the advantages, the
prompts or the model while it trains."""

from routed_rl.training.baselines.checks import check_baseline
from routed_rl.training.baselines.contexts import ContextsMixin, PromptContexts, in_contexts
from routed_rl.training.baselines.detector import Detector, ProbeDetector, check_flags, is_marked
from routed_rl.training.baselines.payment import Payment, imitation
from routed_rl.training.baselines.projection import Projection
from routed_rl.training.baselines.stream import StreamEdit
from routed_rl.training.baselines.trait import TraitAdapter

__all__ = ["ContextsMixin", "Detector", "Payment", "ProbeDetector", "Projection", "PromptContexts", "StreamEdit", "TraitAdapter",
           "check_baseline", "check_flags", "imitation", "in_contexts", "is_marked"]
