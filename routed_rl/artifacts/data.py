"""Finds the configs, environments and the lab that come with this package, and files in them by their names."""

import os
import re
from pathlib import Path
from typing import Any


def data_root() -> Path:
    """The folder with configs, environments and the lab: inside the wheel, or else in the checkout in which this package lies."""
    packaged = Path(__file__).parent.parent / "_data"
    return packaged if packaged.is_dir() else packaged.parent.parent


def resolve(path: str) -> str:
    """The absolute path of the file or folder that `find_data` finds for `path`. If `find_data` finds nothing, `path` itself,
    with the home folder in place of a leading `~`."""
    try:
        return str(find_data(path)) if path else path
    except FileNotFoundError:
        return os.path.expanduser(path)


def find_data(path: str | Path) -> Path:
    """The file or folder that `path` names: as it stands (absolute, or relative to the current folder), or else inside
    `data_root()`. FileNotFoundError if neither exists."""
    for candidate in (Path(path).expanduser(), data_root() / path):
        if candidate.exists():
            return candidate.absolute()
    raise FileNotFoundError(path)


def as_moved(was: Any, now: Any) -> Any:
    """Return `was`, nested settings that the package wrote when it lay at another place, with the present paths of the files that
    come with it. `now` are the same settings as the package writes them here. A text may also be a setting with its name, such as
    `NAME=PATH`."""
    if isinstance(was, dict) and isinstance(now, dict):
        return {key: as_moved(value, now.get(key)) for key, value in was.items()}
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return [as_moved(*pair) for pair in zip(was, now, strict=True)]
    if isinstance(was, str) and isinstance(now, str) and was != now:
        before = re.escape(now).replace(re.escape(f"{data_root()}/"), "/(?:.*/)?")
        return now if re.fullmatch(before, was) else was
    return was
