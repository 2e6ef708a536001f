"""The monitor: rules that judge the rows of `metrics.jsonl` (the metrics of one step each), and the calibration of their
limits."""

from routed_rl.monitor.blame import Blame, blame
from routed_rl.monitor.calibration import FEWEST, Peaks, check_rate, limit, peaks, set_limits, smallest_rate
from routed_rl.monitor.judge import Monitor, Verdict
from routed_rl.monitor.rules import RULES, Row, never_halting, shift, unfed

__all__ = ["FEWEST", "RULES", "Blame", "Monitor", "Peaks", "Row", "Verdict", "blame", "check_rate", "limit",
           "never_halting", "peaks", "set_limits", "shift", "smallest_rate", "unfed"]
