"""`routed-rl report`: one self-contained HTML page, from the files of a run folder alone.

It needs no server, no network and no model. It can be made on another machine, for a run that ended, halted, was killed or still
trains.
"""

from routed_rl.report.differences import cost, differences, has_quarantine, keeping, not_scored
from routed_rl.report.page import write_report
from routed_rl.report.ranking import hardest

__all__ = ["cost", "differences", "hardest", "has_quarantine", "keeping", "not_scored", "write_report"]
