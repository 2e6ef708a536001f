"""The sandbox that works here. Where none does these tests fail: none of them is skipped."""

from __future__ import annotations

import pytest

from routed_rl.sandbox import Sandbox, find_sandbox


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    return find_sandbox("auto")
