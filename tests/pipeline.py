"""The functions of the verbs under one name, for tests that call several of them on one run."""

from routed_rl.pipeline.filtering import filter_run
from routed_rl.pipeline.hub import push
from routed_rl.pipeline.leaving import discard, export
from routed_rl.pipeline.rollback import rollback
from routed_rl.pipeline.train import resume, run_job, train
from routed_rl.pipeline.verbs import evaluate, extract

__all__ = ["discard", "evaluate", "export", "extract", "filter_run", "push", "resume", "rollback", "run_job", "train"]
