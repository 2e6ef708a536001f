"""`routed-rl report`: one self-contained HTML page, from the files of a run folder alone, and the parts of such pages.

It needs no server, no network and no model. It can be made on another machine, for a run that ended, halted, was killed or still
trains.
"""

from routed_rl.report.answers import read_answers
from routed_rl.report.data import roles_of
from routed_rl.report.differences import cost, differences, has_quarantine, keeping, not_scored
from routed_rl.report.headline import Headline, headlines
from routed_rl.report.page import write_page
from routed_rl.report.parts import Bar, Page, Panel, Section, Table
from routed_rl.report.ranking import hardest
from routed_rl.report.run_page import write_report
from routed_rl.report.watching import watch_report

__all__ = ["Bar", "Headline", "Page", "Panel", "Section", "Table", "cost", "differences", "hardest", "has_quarantine",
           "headlines", "keeping", "not_scored", "read_answers", "roles_of", "watch_report", "write_page", "write_report"]
