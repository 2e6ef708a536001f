"""Every test starts from the same random state."""

import torch


def pytest_runtest_setup() -> None:
    torch.manual_seed(0)
