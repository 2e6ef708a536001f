"""What every test needs: one thread, no network, no telemetry. Set before torch and the hub's client are imported."""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1",
                  TOKENIZERS_PARALLELISM="false", WANDB_MODE="offline", WANDB_SILENT="true", MPLBACKEND="Agg")
