"""Makes the paths in settings absolute, so that the settings mean the same in another working directory."""

import os
import re
from pathlib import Path
from typing import Any

from routed_rl.artifacts import resolve
from routed_rl.cli.overrides import hydra_text, parse_override
from routed_rl.config.axes import AxesConfig
from routed_rl.config.references import mapped

PATHS = re.compile(
    r"model\.(adapter\.)?path|env\.[^.]+\.(stages\.)?(path|dataset|reward|solve|factory|taskset|flags(\.[^.]+)?)|"
    r"subspace\.(path|weights|(plain_)?prompts|answers|pairs|target|(roles|traits|questions)_file|parts|compare_to)")
"""Pattern of the settings that name files or folders."""


def from_anywhere(overrides: list[str]) -> list[str]:
    """The same overrides with absolute paths, so that they mean the same in another working directory."""
    return [_from_anywhere(text) for text in overrides]


def _from_anywhere(text: str) -> str:
    key, equals, _ = text.partition("=")
    name = key.lstrip("+")
    if not equals or not PATHS.fullmatch(name) or (override := parse_override(text)[1]).is_sweep_override():
        return text
    value: Any = override.value()
    found = mapped(value, absolute, name)
    bare = isinstance(found, str) and not re.search(r"[,\\]|^\s|\s$", found)  # a comma would separate the values of a sweep
    return text if found == value else f"{key}={found if bare else hydra_text(found)}"


def absolute(name: str, path: Any) -> Any:
    """`path`, the value of the setting `name`, as an absolute path if the setting names a file or folder, otherwise unchanged. In
    the path of an environment, `FILE.py:CLASS`, only FILE.py is made absolute. A dataset that is no local file or folder is taken
    for a name on the Hub, and stays. In the setting `out` only `~` is replaced."""
    if name == "out" and path is not None:
        return os.path.expanduser(path)  # it need not exist, and a name of the package's data means nothing here
    if not isinstance(path, str) or not PATHS.fullmatch(name) or (name == "subspace.target" and path == AxesConfig().target):
        return path
    if not name.startswith("env."):
        return resolve(path)
    if name.endswith(".dataset"):
        found = Path(resolve(path))
        saved = any((found / file).exists() for file in ("dataset_info.json", "dataset_dict.json"))
        return str(found) if found.is_file() or saved else path
    file, colon, cls = path.rpartition(":")
    return f"{resolve(file)}{colon}{cls}" if file.endswith(".py") else path
