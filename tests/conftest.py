"""What every test needs: one thread, no network, no telemetry. Set before torch and the hub's client are imported."""

from __future__ import annotations

import os
import signal
import threading

import pytest

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1",
                  TOKENIZERS_PARALLELISM="false", WANDB_MODE="offline", WANDB_SILENT="true", MPLBACKEND="Agg")


@pytest.fixture
def ctrl_c():
    """A function that presses Ctrl-C so many seconds later. A process that was started in the background ignores it otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda seconds: threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    signal.signal(signal.SIGINT, before)
