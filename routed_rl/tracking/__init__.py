"""The records that a run writes while it trains. `metrics.jsonl` is always written; other trackers are used if
`trainer.report_to` names them."""

from routed_rl.tracking.metrics import METRICS, MODELS, NOT_METRICS, MetricsFile, cosine_matrix, counted, encouraged, practised
from routed_rl.tracking.opening import split_report_to, tracked
from routed_rl.tracking.tracker import Tracker

__all__ = ["METRICS", "MODELS", "NOT_METRICS", "MetricsFile", "Tracker", "cosine_matrix", "counted",
           "encouraged", "practised", "split_report_to", "tracked"]
