"""Finishes each folder that users publish, before it is sealed: it changes the type of the numbers and writes the model card."""

from pathlib import Path

from routed_rl.artifacts import RunFolder
from routed_rl.export.publish import Finish
from routed_rl.report.card import Leaving, Results, write_card


def finishing(run: RunFolder, what: str, dtype: str | None = None, results: Results | None = None, *,
              environment: str | None = None, rest: bool = False) -> Finish:
    """A function that rounds the weights in a folder to `dtype`, unless that is None, and writes the model card. `what` is the
    kind of the model: deployed, policy or quarantine. `environment`: the environment, if only its part of the quarantine was
    written. `rest`: whether only those shares of the quarantine were written that a deployed model lacks. `results` are figures
    for the card, see `write_card`."""
    def finish(folder: Path, step: int) -> None:
        if dtype is not None:
            from routed_rl.export.dtype import cast  # loads torch

            cast(folder, dtype)
        write_card(run, folder, Leaving(what, step, environment, rest), results)

    return finish
