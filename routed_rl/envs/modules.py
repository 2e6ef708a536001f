"""Imports the files of plug-ins, each of which may keep helpers beside itself, in the same folder."""

import ast
import importlib.util
import os
import sys
import zlib
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from routed_rl.errors import ConfigError

PREFIX = "routed_rl_env_"
"""With this the names of the modules of plug-ins begin."""


class Beside(MetaPathFinder):
    """Finds the helpers of plug-ins for functions that import them only when they are called, if nothing else has such a name.
    The folders of plug-ins are not on `sys.path`, where a mere folder beside a plug-in, such as `wandb/` of earlier runs, would
    be taken for an installed library."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, self.folders) if path is None else None
        return spec if spec is not None and spec.origin is not None else None  # a mere folder has no origin


BESIDE = Beside()


def module_from_file(file: Path, shown: str) -> Any:
    """The module in `file`, which is imported only once. The module has the same name in every process, so that its objects can
    be pickled. Its functions, too, find what lies beside it. ConfigError, which begins with `shown`, if the file would get a
    helper of another plug-in."""
    name, folder = f"{PREFIX}{file.stem}_{zlib.crc32(os.fsencode(file)):08x}", str(file.parent)
    if BESIDE not in sys.meta_path:
        sys.meta_path.append(BESIDE)
    if folder not in BESIDE.folders:
        BESIDE.folders.append(folder)
    if name in sys.modules:
        return sys.modules[name]
    _check_helpers(file, shown)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
    return module


def _check_helpers(file: Path, shown: str) -> None:
    """ConfigError if `file` imports a helper beside itself, and a helper of that name, of a plug-in in another folder, is loaded
    in this process: Python would give it that one without a word."""
    loaded = (str(getattr(module, "__file__", "")) for name, module in [*sys.modules.items()] if name.startswith(PREFIX))
    others = {Path(path).parent for path in loaded} - {file.parent}
    for name in _imported(file) if others else ():
        found = getattr(sys.modules.get(name), "__file__", None)
        if found and (file.parent / f"{name}.py").exists() and Path(found).parent in others:
            raise ConfigError(f"{shown}: it imports {name}, and this process has loaded {found} under that name; rename one of "
                              "the two files, or let one of the environments have a process of its own (isolate=true)")


def _imported(file: Path) -> Iterator[str]:
    """The first parts of the names of all modules that `file` imports; none if it cannot be read, which its import tells."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return
    for node in nodes:
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else (
            [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else [])
        yield from (name.partition(".")[0] for name in names)
