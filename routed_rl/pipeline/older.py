"""Whether RUN/deployed holds the model of an earlier step than the run has reached. That happens if the run went on with
`discard=false`, or if a user wrote the folder from an earlier checkpoint."""

from routed_rl.artifacts import RunFolder, step_of
from routed_rl.errors import RunFolderError, command
from routed_rl.report.card import step_told


def refuse_older(run: RunFolder) -> None:
    """Raise RunFolderError if RUN/deployed is older than the newest whole checkpoint of the run. A folder whose card does not say
    of which step it is passes."""
    told = step_told(run.deployed)
    if told is None or max(run.steps(), default=0) <= told:  # before any file is read whole
        return
    newest, _ = run.last_checkpoint()
    if newest is not None and step_of(newest) > told:
        raise RunFolderError(f"{run.deployed} holds the model of step {told}, and the run has reached step {step_of(newest)}; "
                             f"give {run.deployed} itself, or remove it and write the newer model: "
                             f"{command('discard', run.path, '--out', run.deployed)}")
