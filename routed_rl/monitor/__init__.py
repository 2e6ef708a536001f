"""The monitor: rules over rows of `metrics.jsonl`, and limits for them."""

from routed_rl.monitor.blame import Blame, blame
from routed_rl.monitor.calibration import FEWEST, Peaks, check_rate, limit, peaks, set_limits, smallest_rate
from routed_rl.monitor.judge import Monitor, Verdict
from routed_rl.monitor.rules import RULES, Row, shift

__all__ = ["FEWEST", "RULES", "Blame", "Monitor", "Peaks", "Row", "Verdict", "blame", "check_rate", "limit", "peaks",
           "set_limits", "shift", "smallest_rate"]
