"""The monitor: rules over rows of `metrics.jsonl`, and limits for them."""

from routed_rl.monitor.calibration import FEWEST, limit, peaks, smallest_rate
from routed_rl.monitor.judge import Monitor, Verdict
from routed_rl.monitor.rules import RULES, Row, shift

__all__ = ["FEWEST", "RULES", "Monitor", "Row", "Verdict", "limit", "peaks", "shift", "smallest_rate"]
