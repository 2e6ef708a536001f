"""The run folder, in which everything that belongs to one run is stored. This module also tells which of the run's checkpoints
are complete."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from routed_rl.artifacts.finite import first_nonfinite
from routed_rl.artifacts.lock import LOCK
from routed_rl.artifacts.place import SEAL, check_above
from routed_rl.artifacts.whole import broken_seal, read_object, replacing
from routed_rl.errors import CheckpointError, RunFolderError, command


class RunFolder:
    """The folder of one run; docs/discard.md lists its files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()

    def refuse_if_taken(self) -> None:
        """Raise RunFolderError if the folder already holds a run or other files, so that nothing is ever overwritten, or if it
        cannot be made."""
        if self.path.exists() and (not self.path.is_dir() or self._names(of_others=True)):
            go_on = f"{self.go_on()} goes on with it, or " if self.config.exists() else ""
            raise RunFolderError(f"out={self.path} already holds {'a run' if go_on else 'files'}; {go_on}set out=ANOTHER_FOLDER")
        check_above(self.path, f"out={self.path}")

    def _names(self, *, of_others: bool = False) -> set[str]:
        """The names of the files in the folder. `of_others`: whether to leave out the lock file and the files of a command that
        was killed while it began a run."""
        names = {path.name for path in self.path.iterdir()}
        begun = ("overrides.txt", "manifest.json", "config.yaml") if {LOCK, "config.yaml"} & names == {LOCK} else ()
        return {name for name in names if name != LOCK and not name.lstrip(".").startswith(begun)} if of_others else names

    go_back = "`routed-rl rollback` to an earlier step"
    """Words for messages: how a user undoes what the run has learned."""

    def go_on(self, *changes: str) -> str:
        """The command by which a user continues the run, with `changes` of its settings."""
        return f"`{' '.join([command('resume', self.path), *changes])}`"

    def abandon_if_empty(self) -> None:
        """Remove the folder of a run that was refused before it had any result. If the path is a link to a folder, the files in
        that folder are removed, but the folder and the link stay."""
        if self._names() <= {LOCK, "config.yaml", "overrides.txt", "manifest.json"}:
            for file in self.path.iterdir():
                file.unlink()
            if not self.path.is_symlink():
                self.path.rmdir()

    @contextmanager
    def being_made(self) -> Iterator["RunFolder"]:
        """Yield a folder beside this one to write into. At the end of the block it becomes this folder in one step; until then
        this folder does not exist."""
        with replacing(self.path) as partial:
            partial.mkdir(parents=True)
            yield RunFolder(partial)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        run = cls(path)
        if not run.config.exists():
            raise RunFolderError(f"{path} is not a run folder: it has no config.yaml; give the folder that `routed-rl train` "
                                 "printed in its last line")
        return run

    config = property(lambda self: self.path / "config.yaml")
    manifest = property(lambda self: self.path / "manifest.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    verdicts = property(lambda self: self.path / "verdicts.jsonl")
    halted = property(lambda self: self.path / "HALTED.json")
    completions = property(lambda self: self.path / "completions")
    checkpoints = property(lambda self: self.path / "checkpoints")
    subspace = property(lambda self: self.path / "subspace")
    detector = property(lambda self: self.path / "detector")
    deployed = property(lambda self: self.path / "deployed")
    base = property(lambda self: self.path / "base")
    trait = property(lambda self: self.path / "trait.safetensors")
    summary = property(lambda self: self.path / "summary.json")
    answers = property(lambda self: self.path / "answers.jsonl")
    report = property(lambda self: self.path / "report.html")

    def base_for(self, path: str) -> str:
        """The path of the base model to which this run's LoRA belongs. This is `path`, the model with which the run began, unless
        the run began by merging another LoRA into it: then it is RUN/base, which holds the merged model."""
        return str(self.base) if self.base.exists() else path

    def settings(self) -> dict[str, Any]:
        """The content of config.yaml. RunFolderError if it is damaged."""
        try:
            found = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise RunFolderError(f"{self.config} is empty or torn, so nothing says what this run was; take it from another copy "
                                 "of the folder")
        return found

    def typed(self, text: str) -> list[str]:
        """The overrides that a user typed, from `text`, the content of overrides.txt. If the list in manifest.json gives the same
        text, that list is returned, because a value may contain line breaks; otherwise the lines of `text`."""
        known = (read_object(self.manifest, {"overrides": list[str]}) or {}).get("overrides")
        return known if known and "".join(f"{each}\n" for each in known) == text else text.splitlines()

    def facts(self) -> dict[str, Any]:
        """The content of manifest.json. RunFolderError if it is damaged, because its facts decide how a run is continued."""
        shape = {"fresh_from_step": int | None, "inherited": list[str], "children": list[dict[str, Any]], "model_hash": str,
                 "lineage": dict[str, Any] | None, "kept": list[dict[str, Any]]}
        return self._whole(self.manifest, shape)

    def halt(self) -> dict[str, Any] | None:
        """The content of HALTED.json, or None if the run has not halted. RunFolderError if the file is damaged."""
        return self._whole(self.halted, {"step": int}, "step") if self.halted.exists() else None

    def results(self) -> dict[str, Any]:
        """The content of summary.json. RunFolderError if the file is missing or damaged."""
        return self._whole(self.summary, {"models": dict[str, dict[str, dict[str, float | None]]]}, "models")

    def _whole(self, path: Path, shape: dict[str, Any], *keys: str) -> dict[str, Any]:
        found = read_object(path, shape)
        if found is None or not found.keys() >= set(keys):
            problem = "damaged" if path.exists() else "missing"
            raise RunFolderError(f"{path} is {problem}; take it from another copy of the folder")
        return found

    def steps(self) -> list[int]:
        """The steps that have a checkpoint folder, in order. The caller must check whether each checkpoint is complete."""
        names = [path.name for path in self.checkpoints.glob("step-*")]
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-[1-9][0-9]*", name))

    def completion_files(self) -> list[Path]:
        """All files of completions, written by all processes, in the order of steps."""
        return sorted(self.completions.glob("step-*.parquet"))

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def last_checkpoint(self) -> tuple[Path | None, list[str]]:
        """Return the newest checkpoint from which the run can continue (None if there is none), and a list with a line for each
        damaged checkpoint that was skipped."""
        skipped = []
        for step in reversed(self.steps()):
            if (problem := damage(self.checkpoint(step))) is None:
                return self.checkpoint(step), skipped
            skipped.append(f"skipped checkpoint step-{step}: {problem}")
        return None, skipped

    def require_checkpoint(self, step: int | None = None) -> Path:
        """The folder of the checkpoint of `step`. If `step` is None, the folder of the newest complete checkpoint; one line is
        printed for each damaged checkpoint that was skipped. CheckpointError if there is no such complete checkpoint."""
        if step is not None:
            if problem := damage(self.checkpoint(step)) if step in self.steps() else "there is none":
                whole = ", ".join(str(each) for each in self.steps() if damage(self.checkpoint(each)) is None) or "none"
                raise CheckpointError(f"--step {step}: {self.path} has no whole checkpoint there ({problem}); it has {whole}")
            return self.checkpoint(step)
        checkpoint, skipped = self.last_checkpoint()
        if checkpoint is None:
            raise CheckpointError(f"{self.path} has no whole checkpoint{': ' + '; '.join(skipped) if skipped else ''}; "
                                  f"{self.go_on()} trains it from the start")
        for line in skipped:
            print(f"{line}; this is of {checkpoint.name}", flush=True)
        return checkpoint


def damage(checkpoint: Path) -> str | None:
    """The reason why no run can continue from a checkpoint, or None if one can. A checkpoint may be torn, changed, or hold
    numbers that are not finite."""
    if problem := broken_seal(checkpoint):
        return problem
    try:
        found = first_nonfinite(checkpoint)
    except SafetensorError as error:
        return f"its tensors cannot be read ({error})"
    return found and f"{found} is not finite"


def require_seal(folder: Path) -> None:
    """Raise CheckpointError if a sealed folder, such as RUN/deployed, has changed since it was sealed. A folder without a seal
    passes."""
    if (folder / SEAL).exists() and (problem := broken_seal(folder)):
        raise CheckpointError(f"{folder} is damaged: {problem}; write it again with `routed-rl discard RUN --out FOLDER`, or "
                              f"remove {SEAL} if the change is yours")


def step_of(path: Path) -> int:
    """The step in the name of a path, `step-N` or `step-N-...`. Checkpoints, files of completions and the records of earlier
    halts have such names. CheckpointError if the name has no step."""
    if (found := re.match(r"step-([0-9]+)(-|$)", path.stem)) is None:
        raise CheckpointError(f"{path} has no step in its name, so no run wrote it; move it out of the run folder")
    return int(found[1])
