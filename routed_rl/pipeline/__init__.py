"""One function per verb of the command line."""

from routed_rl.pipeline.audit import audit
from routed_rl.pipeline.rollback import rollback
from routed_rl.pipeline.train import resume, train, work
from routed_rl.pipeline.verbs import discard, evaluate, export, extract

__all__ = ["audit", "discard", "evaluate", "export", "extract", "resume", "rollback", "train", "work"]
