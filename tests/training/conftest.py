"""Fixtures that most files of this folder share. A file whose parts differ has a fixture of the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parts import write_parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """What `write_parts` writes: a tiny model, an environment and contrast prompts."""
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def subspace(parts) -> Any:
    """The subspace of that model, extracted by the library."""
    from tests.library import subspace_of  # here, because it loads TRL

    return subspace_of(parts)
