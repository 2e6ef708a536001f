"""Files that must be complete or absent, the run folder, and the place of the package's own data."""

from routed_rl.artifacts.data import as_moved, at_present, data_root, find_data, left_root, resolve
from routed_rl.artifacts.finite import first_nonfinite
from routed_rl.artifacts.lines import json_lines, require_text
from routed_rl.artifacts.lock import LOCK, alone_in, alone_making, is_held
from routed_rl.artifacts.place import check_above, check_file
from routed_rl.artifacts.run import RunFolder, damage, require_seal, step_of
from routed_rl.artifacts.whole import (
    ADAPTER,
    ADAPTER_CONFIG,
    BASE,
    CARD,
    KEPT,
    ROBUSTIFIED,
    SEAL,
    broken_seal,
    read_json,
    read_object,
    remove,
    replacing,
    sealed_folder,
    sync,
    write_json,
    write_text,
)

__all__ = ["ADAPTER", "ADAPTER_CONFIG", "BASE", "CARD", "KEPT", "LOCK", "ROBUSTIFIED", "SEAL", "RunFolder", "alone_in",
           "alone_making", "as_moved", "at_present", "broken_seal", "check_above", "check_file", "damage", "data_root",
           "find_data", "first_nonfinite", "is_held", "json_lines", "left_root", "read_json", "read_object", "remove",
           "replacing", "require_seal", "require_text", "resolve", "sealed_folder", "step_of", "sync", "write_json",
           "write_text"]
