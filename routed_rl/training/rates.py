"""Learning rates and weight decays on a resume."""

from __future__ import annotations

from typing import Any


def use_rates(optimizer: Any, scheduler: Any, wanted: list[tuple[float, float]]) -> None:
    """Go on with each group's (learning rate, weight decay), and with the schedule as it is now set, at the step of the
    checkpoint."""
    schedule = getattr(scheduler, "scheduler", scheduler)
    for place, (group, (rate, decay)) in enumerate(zip(optimizer.param_groups, wanted, strict=True)):
        group["weight_decay"] = decay
        group["initial_lr"] = schedule.base_lrs[place] = rate
        group["lr"] = schedule._last_lr[place] = rate * schedule.lr_lambdas[place](schedule.last_epoch)
