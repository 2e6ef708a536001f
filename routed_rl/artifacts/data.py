"""Where configs, environments and the lab are, and files by their name there."""

from pathlib import Path


def data_root() -> Path:
    """Where configs, environments and the lab are: inside the wheel, else the checkout this package lies in."""
    packaged = Path(__file__).parent.parent / "_data"
    return packaged if packaged.is_dir() else packaged.parent.parent


def resolve(path: str) -> str:
    """An existing file or folder by its absolute path, as `find_data` finds it; anything else as it stands."""
    try:
        return str(find_data(path)) if path else path
    except FileNotFoundError:
        return path


def find_data(path: str | Path) -> Path:
    """`path` as it stands (absolute, or relative to here), else inside `data_root()`; FileNotFoundError if neither."""
    for candidate in (Path(path).expanduser(), data_root() / path):
        if candidate.exists():
            return candidate.absolute()
    raise FileNotFoundError(path)
