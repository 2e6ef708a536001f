"""The folder `args.output_dir` of a library trainer (one that `import routed_rl` offers). It is a run folder as the commands make
it, but without the files that hold the commands' settings."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

from routed_rl.artifacts import ADAPTER_CONFIG, SEAL, RunFolder, alone_in, step_of
from routed_rl.artifacts.run import damage
from routed_rl.errors import CheckpointError, RunFolderError
from routed_rl.ranks import RANKS
from routed_rl.tracking import MetricsFile
from routed_rl.training.completions import forget_after


class LibraryFolder(RunFolder):
    """A run folder that holds `metrics.jsonl`, `verdicts.jsonl`, `completions/` and `checkpoints/step-N`."""

    go_back = "going on from an earlier checkpoint"

    def go_on(self, *changes: str) -> str:
        """Return a text that tells a user how to continue the run. `changes`: settings that the user should change, if any."""
        return f"`trainer.train(resume_from_checkpoint=True)`{' with other settings' if changes else ''}"

    def base_for(self, path: str) -> str:
        """Return `path`. A folder `base` in `args.output_dir` is not read, because only the commands store a base model there."""
        return path

    def alone(self) -> AbstractContextManager[None]:
        """Inside the block, no other process can train into this folder, as with the commands. The first process of a launch
        holds the lock for all of them. RunFolderError, which names the other process, if one trains here already."""
        return alone_in(self.path) if RANKS.rank == 0 else nullcontext()

    def begin(self) -> None:
        """Make the folder for a new run. RunFolderError if it holds a run already, because a run is never overwritten."""
        if self.steps() or MetricsFile(self.metrics).rows():
            go_on = f"go on with {self.go_on()}, or " if self.last_checkpoint()[0] else ""
            raise RunFolderError(f"args.output_dir={self.path} holds a run already; {go_on}make a new trainer "
                                 "with another args.output_dir")
        self.path.mkdir(parents=True, exist_ok=True)

    def begin_from(self, checkpoint: str | Path | Literal[True], last: int, check: Callable[[Path], None]
                   ) -> tuple[Path, set[int]]:
        """Prepare the folder for going on from a checkpoint: remove all metrics, verdicts and completions of later steps. Returns
        the folder of the checkpoint, and the steps up to the checkpoint after which the monitor had halted the run. `checkpoint`:
        its folder; True: the newest one. `last`: the number of the run's last step; -1 if the number of epochs decides. `check`:
        function that is called with the checkpoint's folder before anything is removed, and raises an error if the trainer cannot
        go on from this checkpoint. CheckpointError if the checkpoint is not whole, is of another run, is not the newest, or is of
        the run's last step."""
        folder = self._newest() if checkpoint is True else Path(checkpoint).expanduser().absolute()
        if folder.parent.resolve() != self.checkpoints.resolve():
            raise CheckpointError(f"resume_from_checkpoint={checkpoint} is no checkpoint of args.output_dir={self.path}; set "
                                  "args.output_dir to the folder whose checkpoints/step-N it is")
        step = step_of(folder)
        folder = self.checkpoints / folder.name
        if problem := damage(folder) if folder.exists() else "there is none":
            raise CheckpointError(f"resume_from_checkpoint={folder} is not whole: {problem}; take another one, or True for the "
                                  "newest that is whole")
        if later := [each for each in self.steps() if each > step and damage(self.checkpoint(each)) is None]:
            raise CheckpointError(f"step-{later[-1]} is newer than {folder.name} in {self.checkpoints}; move it away, or go on "
                                  f"from it with {self.go_on()}")
        if 0 < last <= step:
            raise CheckpointError(f"{folder.name} is the last step of args.max_steps={last}, so nothing is left to train; set "
                                  "args.max_steps higher")
        check(folder)
        for file in (MetricsFile(self.metrics), verdicts := MetricsFile(self.verdicts)):
            file.truncate(step)
        forget_after(self.completions, step)
        return folder, {row["step"] for row in verdicts.rows() if row.get("action") == "halt"}

    def _newest(self) -> Path:
        newest, skipped = self.last_checkpoint()
        if newest is None:
            why = f" ({'; '.join(skipped)})" if skipped else ""
            another = ", of a new trainer with another args.output_dir" if MetricsFile(self.metrics).rows() else ""
            raise CheckpointError(f"args.output_dir={self.path} has no whole checkpoint{why}; call train() without "
                                  f"resume_from_checkpoint{another}")
        return newest


def check_place(folder: Path, *, adapted: bool) -> None:
    """RunFolderError if a model must not be saved into `folder`: the folder is sealed, such as a checkpoint, or it holds an
    adapter, which `from_pretrained` would load instead of a whole model. `adapted`: whether the model that is saved is an
    adapter."""
    if (folder / SEAL).exists():
        raise RunFolderError(f"save_model({str(folder)!r}) would change a folder that is sealed, such as a checkpoint or what "
                             "`routed-rl discard` wrote; give another folder")
    if not adapted and (folder / ADAPTER_CONFIG).exists():
        raise RunFolderError(f"save_model({str(folder)!r}) would save a whole model beside an adapter ({ADAPTER_CONFIG}), which "
                             "would be loaded instead; give another folder")
