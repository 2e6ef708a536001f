"""Files that must be whole or absent, the run folder, and where the package's own data are."""

from routed_rl.artifacts.data import data_root, find_data, resolve
from routed_rl.artifacts.run import RunFolder, step_of
from routed_rl.artifacts.whole import (
    SEAL,
    broken_seal,
    read_json,
    sealed_folder,
    sha256,
    write_json,
    write_text,
)

__all__ = ["SEAL", "RunFolder", "broken_seal", "data_root", "find_data", "read_json", "resolve", "sealed_folder", "sha256",
           "step_of", "write_json", "write_text"]
