"""Imports of large libraries without collecting garbage meanwhile."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports with which a command begins. They create about 800,000 objects that stay until the process ends, and
    the garbage collector takes a fifth of the time of the imports to look through them again and again. Inside the block nothing
    is collected, and afterwards the collector leaves these objects out for good.

    Not for imports in the middle of the work: what is garbage when the block ends would stay, too. If every module was there
    already, the block changes nothing."""
    collected, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if collected:
            gc.enable()
