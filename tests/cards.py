"""Reads model cards as their readers do. Not a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def loaded_by_card(folder: Path) -> Any:
    """The model that the code on a folder's card loads, run as it stands in the current folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["model"]
