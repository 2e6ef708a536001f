"""Export of a run's models: the deployed model, alone or with shares of environments' parts; the policy merged into one model;
the quarantine as a stock PEFT adapter. It reads the files of one checkpoint and needs no trainer."""

from routed_rl.export.adapter import export_quarantine
from routed_rl.export.dtype import cast
from routed_rl.export.models import KEPT, discard, discard_but, merged, merged_policy
from routed_rl.export.publish import Finish, publish, refuse_foreign

__all__ = ["KEPT", "Finish", "cast", "discard", "discard_but", "export_quarantine", "merged", "merged_policy", "publish",
           "refuse_foreign"]
