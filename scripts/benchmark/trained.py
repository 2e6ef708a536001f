"""The runs that a benchmark trains for itself. What was trained once is kept."""

from __future__ import annotations

from pathlib import Path

from routed_rl.artifacts import RunFolder
from routed_rl.cli.compose import compose
from routed_rl.multirun.job import Job, is_finished, train_or_resume


def trained(folder: Path, settings: list[str]) -> RunFolder:
    """The finished run with these settings in `folder`, which is trained if it is not there. RunFolderError if the folder holds a
    run of other settings."""
    job = Job(folder.name, compose([*settings, f"out={folder}"]), settings)
    if not is_finished(job, "--out"):
        train_or_resume(job.config, job.overrides)
    return job.folder
