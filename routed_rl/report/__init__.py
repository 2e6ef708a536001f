"""`routed-rl report`: one self-contained HTML page, from the files of a run folder alone.

No server, no network, no model: it can be made on another machine, of a run that ended, halted, was killed or still trains.
"""

from routed_rl.report.page import write_report
from routed_rl.report.ranking import hardest
from routed_rl.report.story import most_grown

__all__ = ["hardest", "most_grown", "write_report"]
