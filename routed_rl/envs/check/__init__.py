"""Checks whether an environment is sound: its gold completions (solutions by its method `gold`) are paid, junk is not, the same
seed gives the same tasks, and its scorer is quick and does not raise.

A sound environment can still be gamed by a completion that is not junk; nothing here looks for that.
"""

from routed_rl.envs.check.checks import CHECKS
from routed_rl.envs.check.evidence import gather
from routed_rl.envs.check.findings import Finding, findings, unsound

__all__ = ["CHECKS", "Finding", "findings", "gather", "unsound"]
