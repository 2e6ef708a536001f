"""The verb `doctor` checks whether this machine is ready. It fails if something that is needed is broken; other rows of its table
only inform."""

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from routed_rl import __version__, console
from routed_rl.config import Config
from routed_rl.errors import CheckFailed, RoutedRLError

PACKAGES = ("torch", "trl", "transformers", "peft", "accelerate", "datasets", "hydra-core", "safetensors")
OPTIONAL = ("wandb", "reasoning-gym", "vllm", "deepspeed")
LEAST_GB = 2.0
"""Free space in GB below which a run may be unable to write its checkpoints."""


@dataclass(frozen=True)
class Row:
    """One row of the table of `doctor`, about the thing `name`. `sound` says whether it works; None if it is not needed or could
    not be judged."""

    name: str
    sound: bool | None
    detail: str


def doctor(config: Config) -> None:
    """Print a row for each thing that is checked. CheckFailed if something that is needed is broken; the error names it."""
    rows = [*versions(), *disk(Path(config.out or "runs")), *gpus(), *chat_template(config.model.path), *sandbox()]
    for row in rows:
        console.say(f"{'-' if row.sound is None else 'ok' if row.sound else 'BROKEN':7} {row.name:24} {row.detail}")
    if broken := [row.name for row in rows if row.sound is False]:
        raise CheckFailed(f"{len(broken)} of {len(rows)} are broken: {', '.join(broken)}; the lines above say why")


def versions() -> Iterator[Row]:
    """Rows with the versions of Python, this package, its dependencies (with the versions that it requires), and the optional
    packages."""
    yield Row("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.system()}; >=3.11 is needed")
    yield Row("routed_rl", True, __version__)
    # Without the requirements of extras; empty if this runs from a checkout that is not installed.
    needed = map(Requirement, importlib.metadata.requires("routed-rl") or [] if _version("routed-rl") else [])
    wanted = {each.name: each.specifier for each in needed if not each.marker}
    for name in PACKAGES:
        version, asked = _version(name), wanted.get(name, SpecifierSet())
        yield Row(name, version is not None and asked.contains(version, prereleases=True),
                  f"{version or 'not installed'}{f'; {asked} is needed' if str(asked) else ''}")
    for name in OPTIONAL:
        yield Row(name, None, _version(name) or "not installed; optional")


def disk(folder: Path) -> Iterator[Row]:
    """A row with the free space at the place where runs are written."""
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    yield Row("disk", free >= LEAST_GB, f"{free:.1f} GB free for {folder}; a checkpoint takes about three times the model")


def gpus() -> Iterator[Row]:
    """A row for each GPU that torch can use, or one that says that there is none."""
    try:
        import torch
    except ImportError:
        return
    count = torch.cuda.device_count()
    for place in range(count):
        free, total = torch.cuda.mem_get_info(place)
        yield Row(f"GPU {place}", None, f"{torch.cuda.get_device_name(place)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    if not count:
        yield Row("GPU", None, f"none; training runs on {torch.get_num_threads()} CPU threads")


def chat_template(path: str) -> Iterator[Row]:
    """Rows that say whether the model's tokenizer loads, and how its chat template renders an empty chat and the beginning of the
    model's turn."""
    try:
        from routed_rl.model.load import load_tokenizer

        tokenizer: Any = load_tokenizer(path)
    except (RoutedRLError, ImportError) as error:
        yield Row("tokenizer", False, f"{path}: {error}")
        return
    yield Row("tokenizer", True, f"{path}: {len(tokenizer)} tokens, ends with {tokenizer.eos_token}")
    if not tokenizer.chat_template:
        yield Row("chat template", None, "none: prompts must be text")
        return
    try:
        plain, prompted = (tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=prompt,
                                                         tokenize=False) for prompt in (False, True))
    except Exception as error:
        yield Row("chat template", False, f"fails on an empty message: {' '.join(str(error).split())[:200]}")
        return
    cost, turn = (len(tokenizer.encode(text, add_special_tokens=False)) for text in (plain, prompted[len(plain):]))
    yield Row("chat template", True, f"an empty chat costs {cost} tokens: {plain!r:.120}")
    works = prompted.startswith(plain) and turn > 0
    yield Row("generation prompt", works, f"{turn} tokens: {prompted[len(plain):]!r}" if works else
              "add_generation_prompt adds nothing, so the model is not told that it is its turn; fix the template")


def sandbox() -> Iterator[Row]:
    """Run the programs of `routed_rl.sandbox.probe`, which try to break out of a jail, and yield a row for each. A missing
    sandbox is not a fault: only code that a model wrote needs one, and such code is refused without it."""
    from routed_rl.sandbox import probe

    for place, (name, sound, detail) in enumerate(probe()):
        if place == 0 and not sound:
            yield Row(name, None, f"none, so code that a model wrote is refused: {detail}")
        else:
            yield Row(name if place == 0 else f"sandbox: {name}", sound, detail)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
