"""Learning rates and weight decays on a resume."""

from __future__ import annotations

from typing import Any


def use_rates(optimizer: Any, scheduler: Any, wanted: list[tuple[float, float]]) -> None:
    """Go on with each group's (learning rate, weight decay) where the checkpoint's are others; the schedule stays where it is."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    for place, (group, (rate, decay)) in enumerate(zip(optimizer.param_groups, wanted, strict=True)):
        group["weight_decay"] = decay
        if rate != (was := group["initial_lr"]):
            group["lr"] = group["lr"] * (rate / was) if was else rate
            group["initial_lr"] = scheduler.base_lrs[place] = rate
            scheduler._last_lr[place] = group["lr"]
