"""One function per verb of the command line."""

from routed_rl.pipeline.rollback import rollback
from routed_rl.pipeline.train import resume, train
from routed_rl.pipeline.verbs import discard, evaluate, export, extract

__all__ = ["discard", "evaluate", "export", "extract", "resume", "rollback", "train"]
