"""The training of a run in processes of its own; what comes before and after it stays in this one.

Not covered: evaluation in several processes.
"""

from __future__ import annotations

import sys
from typing import cast

import torch
from torch import nn

from routed_rl.artifacts import RunFolder
from routed_rl.checkpoint import load_quarantine
from routed_rl.launching import run_processes
from routed_rl.pipeline.build import Parts
from routed_rl.routing import Router

WORKER = "routed_rl.cli.worker"


def train(parts: Parts, run: RunFolder, router: Router | None) -> None:
    """Start the processes, wait for them, and read what they trained into `parts.model` and `router`."""
    model, device = cast(nn.Module, parts.model), parts.model.device
    model.cpu()  # the processes need the memory of the GPUs
    torch.cuda.empty_cache()
    run_processes([sys.executable, "-m", WORKER, str(run.path)], parts.config.launch, run.path / "processes")
    folder = run.require_checkpoint()
    stored = type(parts.model).from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(cast(nn.Module, stored).state_dict())
    model.to(device)
    if router is not None:
        load_quarantine(folder, router)
