"""What leaves a run: the deployed model, alone or with shares of environments' parts, the policy merged into one model, the
quarantine as a stock PEFT adapter. Opens the files of one checkpoint, never a trainer."""

from routed_rl.export.adapter import export_quarantine
from routed_rl.export.models import discard, discard_but, merged, merged_policy, publish, refuse_foreign

__all__ = ["discard", "discard_but", "export_quarantine", "merged", "merged_policy", "publish", "refuse_foreign"]
