"""Runs untrusted code: one jail for each program, and an error if no jail can be made. Import from here.

Not covered: programs other than Python, bugs of the kernel, and side channels such as timing.
"""

from routed_rl.sandbox.calls import Call, call_function
from routed_rl.sandbox.core import Sandbox
from routed_rl.sandbox.find import find_sandbox
from routed_rl.sandbox.limits import Limits, Outcome
from routed_rl.sandbox.probe import probe
from routed_rl.sandbox.values import read_json, same_value

__all__ = ["Call", "Limits", "Outcome", "Sandbox", "call_function", "find_sandbox", "probe", "read_json", "same_value"]
