"""The place of configs, environments and the lab, and files by their name there."""

from pathlib import Path


def data_root() -> Path:
    """The folder with configs, environments and the lab: inside the wheel, else the checkout in which this package lies."""
    packaged = Path(__file__).parent.parent / "_data"
    return packaged if packaged.is_dir() else packaged.parent.parent


def resolve(path: str) -> str:
    """The absolute path of an existing file or folder, found by `find_data`; any other text unchanged."""
    try:
        return str(find_data(path)) if path else path
    except FileNotFoundError:
        return path


def find_data(path: str | Path) -> Path:
    """`path` as it is (absolute, or relative to the current folder), else inside `data_root()`; FileNotFoundError if neither
    exists."""
    for candidate in (Path(path).expanduser(), data_root() / path):
        if candidate.exists():
            return candidate.absolute()
    raise FileNotFoundError(path)
