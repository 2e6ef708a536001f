"""Training runs as jobs: what one is, whether it is done, and doing many of them a few at a time, each in its own process."""

from routed_rl.jobs.job import Job, first_difference, is_finished, train_or_resume
from routed_rl.jobs.workers import Execute, refuse_failed, run_all, run_missing

__all__ = ["Execute", "Job", "first_difference", "is_finished", "refuse_failed", "run_all", "run_missing",
           "train_or_resume"]
