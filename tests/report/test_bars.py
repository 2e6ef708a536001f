"""How long a report of a long run takes, and how large it is."""

from __future__ import annotations

import time

import pytest

from routed_rl.artifacts import RunFolder
from routed_rl.report.run_page import write_report
from tests.report.folders import write_run


@pytest.mark.slow
def test_two_thousand_steps_of_twelve_environments_are_one_small_page_soon(tmp_path):
    folder = write_run(tmp_path / "run", steps=2000, environments=12, layers=32, completions=64)
    start = time.process_time()
    page = write_report(RunFolder.open(folder))
    seconds, size = time.process_time() - start, page.stat().st_size
    print(f"{seconds:.1f} CPU seconds, {size / 1e6:.2f} MB")
    assert seconds < 20 and size < 3e6
