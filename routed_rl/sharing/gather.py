"""Chooses and cleans the files of a run, or of any other folder, that are shared, and says which are left out and why.

From a run it takes the completions, the contrast prompts of the subspace, the settings and the results. From another folder it
takes every file that can carry a canary. Files are held in memory one at a time.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from routed_rl import console
from routed_rl.artifacts import RunFolder, find_data, read_object
from routed_rl.canary import canary_of
from routed_rl.errors import SharingError, reading
from routed_rl.sharing import parquet
from routed_rl.sharing.kinds import KINDS
from routed_rl.sharing.private import Private
from routed_rl.sharing.unfit import Unfit

SETTINGS = ("config.yaml", "overrides.txt", "summary.json")
OF_A_RUN = "is not part of what is shared of a run: its completions, contrast prompts, settings and results"


@dataclass(frozen=True)
class Source:
    """A file to share, and its name in the archive. `settings` says that it is a file of settings, in which every absolute path
    is cut to its last name."""

    path: Path
    name: str
    settings: bool = False


@dataclass(frozen=True)
class Clean:
    """A file that can be shared, described by the size and the hash of its clean text. Secrets, this machine's paths and any
    canary have been taken out of this text. Sharing adds a canary, whose removal gives exactly the clean text again."""

    source: Source
    size: int
    sha256: str
    private: int
    """The number of secrets and paths that were removed."""
    anew: bool
    """Whether a parquet file without private texts was written again, with the same rows, because removing a canary from the file
    as it was would not restore it to the byte."""


@dataclass
class Gathered:
    """The files to share, and the files that are left out, with the reasons."""

    private: Private
    files: list[Clean] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def content(self) -> str:
        """A hash of the names and contents of all files, in their order."""
        return hashlib.sha256("".join(f"{each.sha256}  {each.source.name}\n" for each in self.files).encode()).hexdigest()

    @property
    def canary(self) -> str:
        return canary_of(self.content)

    def marked(self) -> Iterator[tuple[Clean, bytes]]:
        """Yield each file of `files` with the bytes to share, which hold the canary. SharingError if a file has changed since it
        was read."""
        canary = self.canary
        for file in self.files:
            clean = _cleaned_again(file, self.private)
            if hashlib.sha256(clean).hexdigest() != file.sha256:
                raise SharingError(f"{file.source.path} changed while it was read; wait until nothing writes there")
            yield file, KINDS[file.source.path.suffix].mark(clean, canary)


def gather(folder: Path) -> Gathered:
    """Choose and clean the files of `folder`, which is a run or any other folder. SharingError if none can be shared."""
    found = Gathered(Private(folder))
    sources, found.left_out = _of_run(RunFolder(folder)) if (folder / "config.yaml").exists() else _of_folder(folder)
    with console.progress("reading", "files") as advance:
        for number, source in enumerate(sources, 1):
            try:
                found.files.append(_read(source, found.private))
            except Unfit as reason:
                found.left_out.append((source.name, str(reason)))
            advance(number, len(sources))
    if not found.files:
        why = "; ".join(f"{name} {reason}" for name, reason in found.left_out[:3]) or "it is empty"
        raise SharingError(f"{folder} has nothing to share ({why}); give a run, or a folder of {', '.join(KINDS)}")
    return found


def _read(source: Source, private: Private) -> Clean:
    data, count, anew = _cleaned(source, private)
    KINDS[source.path.suffix].mark(data, "?")
    return Clean(source, len(data), hashlib.sha256(data).hexdigest(), count, anew)


def _cleaned(source: Source, private: Private) -> tuple[bytes, int, bool]:
    """Return the bytes of a file without canary and private texts, how many private texts were removed, and whether a parquet
    file had to be written again although it had no private text."""
    suffix = source.path.suffix
    with reading(SharingError, f"{source.path} cannot be read"):
        data = source.path.read_bytes()
    if suffix != ".parquet":
        change = private.text if not source.settings else private.yaml if suffix == ".yaml" else private.settings
        return *private.file(KINDS[suffix].unmark(data), change), False
    try:
        clean, count = private.parquet(parquet.unmark(data))
        anew = not count and not parquet.marks_exactly(clean)
        return parquet.written(parquet.table_of(clean)) if anew else clean, count, anew
    except Unfit:
        raise
    except Exception as error:
        raise Unfit(f"cannot be read as parquet ({type(error).__name__})") from error


def _cleaned_again(file: Clean, private: Private) -> bytes:
    """Read `file` once more and return its clean bytes. If cleaning changed nothing the first time, the file is not searched
    again."""
    if file.private or file.anew:
        return _cleaned(file.source, private)[0]
    return KINDS[file.source.path.suffix].unmark(file.source.path.read_bytes())


def _of_run(run: RunFolder) -> tuple[list[Source], list[tuple[str, str]]]:
    sources = [Source(path, f"completions/{path.name}") for path in run.completion_files()]
    sources += [Source(path, path.name, settings=True) for path in map(run.path.joinpath, SETTINGS) if path.exists()]
    prompts, left_out = _prompts(run)
    taken = {source.name.split("/")[0] for source in sources}
    others = sorted(path for path in run.path.iterdir() if path.name not in taken and not path.name.startswith("."))
    left_out += [(path.name + "/" * path.is_dir(), OF_A_RUN) for path in others]
    if not run.completion_files():
        left_out.append(("completions/", "is empty: the run was trained with tracking.completions=false, or has trained no step"))
    return sources + prompts, left_out


def _prompts(run: RunFolder) -> tuple[list[Source], list[tuple[str, str]]]:
    """Return the file of contrast prompts from which the run's subspace was made, as a list with one source. If there is none,
    the second list has its name and the reason, as in `Gathered.left_out`."""
    record = read_object(run.subspace / "subspace.json", {"provenance": dict[str, object]}) or {}
    given = str(record.get("provenance", {}).get("prompts", ""))
    try:
        path = find_data(given) if given else None
    except FileNotFoundError:
        return [], [(f"contrast prompts {Path(given).name}", "are no longer where the run read them")]
    if path is None or path.suffix not in KINDS or not path.is_file():
        return [], [("contrast prompts", "are no file: the subspace was made from something else")]
    return [Source(path, f"contrast_prompts{path.suffix}")], []


def _of_folder(folder: Path) -> tuple[list[Source], list[tuple[str, str]]]:
    sources, left_out = list[Source](), list[tuple[str, str]]()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_symlink():
            left_out.append((name, "is a link"))
        elif not path.is_file():
            continue
        elif hidden:
            left_out.append((name, "is hidden"))
        elif path.suffix not in KINDS:
            left_out.append((name, f"has no place for a canary: {', '.join(KINDS)} have one"))
        elif not name.isprintable() or "\\" in name:
            left_out.append((name, "has a name that not every system can write"))
        else:
            sources.append(Source(path, name))
    return sources, left_out
