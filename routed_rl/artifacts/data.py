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


def left_root(path: Any) -> str | None:
    """The place from which the package's data has moved, if `path`, a file of that data, was recorded when the data lay there and
    is no longer there; otherwise None. Such a file is known by its present path inside `data_root()`."""
    if not isinstance(path, str) or not path.startswith("/") or os.path.exists(path):
        return None
    parts = Path(path).parts
    return next((str(Path(*parts[:place])) for place in range(1, len(parts)) if data_root().joinpath(*parts[place:]).is_file()),
                None)


def at_present(text: str, left: str) -> str:
    """Return `text`, a path or a setting with its name and value, in which each path inside the folder `left`, a result of
    `left_root`, is replaced by the same path inside `data_root()`."""
    return re.sub(rf"(?<![^=\[,:'\" ]){re.escape(left)}/", lambda _: f"{data_root()}/", text)
