"""A real model with a tied head on both engines: a rate of 1e-3, parity after every step, a sync in under a second."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rollout.live import MODES, ROOT, trained_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


@MODES
def test_smollm2_trains_at_a_high_rate_on_either_engine_with_parity_all_along(mode, tmp_path):
    rows = trained_smollm2(tmp_path / "run", *mode, "trainer.max_steps=4", "trainer.learning_rate=1e-3")
    # The fourth line's rollouts are those after three steps.
    assert len(rows) == 4 and all(row["train/sampling/sampling_logp_difference/max"] < 1e-3 for row in rows)
    assert rows[-1]["quarantine/norm"] > 0


@MODES
def test_smollm2_trains_ten_steps_on_either_engine(mode, tmp_path):
    rows = trained_smollm2(tmp_path / "run", *mode, "trainer.max_steps=10")
    assert [row["step"] for row in rows] == list(range(1, 11)) and rows[-1]["quarantine/norm"] > 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_vllm_is_twice_as_fast_and_a_sync_takes_less_than_a_second(tmp_path):
    """CPU seconds of one process; the server's sync is a time by the clock, so it needs a machine with a core to spare."""
    found = {}
    for engine in ("vllm_colocate", "vllm_server"):
        out = tmp_path / f"{engine}.json"
        subprocess.run([sys.executable, "scripts/bench_rollouts.py", "--engine", engine, "--json", str(out)], cwd=ROOT,
                       check=True, timeout=1800)
        found[engine] = json.loads(Path(out).read_text())
    print(found)
    assert found["vllm_colocate"]["ratio"] >= 2
    assert found["vllm_server"]["sync_wall_s"] < 1
