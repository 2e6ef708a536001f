"""The facts that a model card tells about the run, the folder and the figures. They are read from files, without torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from routed_rl.artifacts import ADAPTER_CONFIG, BASE, KEPT, ROBUSTIFIED, SEAL, read_object
from routed_rl.config.references import masked
from routed_rl.report.data import RunData
from routed_rl.report.differences import Results

DEPLOYED, POLICY, QUARANTINE, STUDENT = "deployed", "policy", "quarantine", "robustified"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
LONGEST = 120
"""Users' texts, such as names, are cut to this many characters."""


@dataclass(frozen=True)
class Leaving:
    """A folder that users publish: the kind of model in it, and the step of the checkpoint from which it is made."""

    what: str
    """The kind of model: DEPLOYED, POLICY, QUARANTINE or STUDENT."""
    step: int
    environment: str | None = None
    """For a quarantine: the name of the environment whose part alone is written; None for all parts."""
    rest: bool = False
    """For a quarantine: whether the folder holds only what a deployed model that keeps parts of the quarantine does not keep."""


@dataclass(frozen=True)
class Facts:
    """The facts for a model card of `folder`: the run, the kind of model in the folder, and the figures of the run's models."""

    run: RunData
    leaving: Leaving
    folder: Path
    results: Results
    """The figures at the end of the run, by model, environment and metric; empty if nothing was evaluated."""

    @property
    def is_adapter(self) -> bool:
        return (self.folder / ADAPTER_CONFIG).exists()

    @property
    def trains_lora(self) -> bool:
        return self.adapter.get("kind", "none") != "none"

    @property
    def beside(self) -> bool:
        """For a folder with a quarantine: whether the deployed model's LoRA must also be active when the quarantine is loaded.
        True if the run trained a LoRA, except if the quarantine belongs to a whole model that keeps parts of it: the weights of
        such a model contain the LoRA."""
        base = (read_object(self.folder / ADAPTER_CONFIG, {BASE: str}) or {}).get(BASE, "")
        return self.trains_lora and not (self.leaving.rest and (Path(base) / KEPT).exists())

    @property
    def adapter(self) -> dict[str, Any]:
        """The settings of the LoRA that was trained. Their `kind` is `none` if the weights were trained."""
        return self.run.setting("model", "adapter") or {}

    @property
    def base(self) -> str | None:
        """The name on the hub of the model with which the run began; None if the model was a folder or a file, or had a LoRA
        merged into it."""
        return None if self.adapter.get("path") else hub_name(self.run.setting("model", "path", ""))

    @cached_property
    def labels(self) -> dict[str, str]:
        """Maps each environment to its name for people, such as `code (insecure)`. For a run of an older version, which recorded
        no such names, that is just the environment's own name."""
        known: dict[str, Any] = self.run.config.get("env") or {}
        return {name: plain(label) for name, label in {**{name: name for name in known},
                                                       **self.run.manifest.get("environments", {})}.items()}

    @property
    def shares(self) -> dict[str, float]:
        """For each environment, the share of its part of the quarantine that the model in the folder keeps; empty if the folder
        has no record of kept parts. For a robustified model: the shares that its teacher keeps."""
        if self.leaving.what == STUDENT:
            return self.robustified.get("teacher", {}).get("kept", {})
        parts = (read_object(self.folder / KEPT, {"parts": dict[str, dict[str, Any]]}) or {}).get("parts", {})
        return {name: part.get("share") or 0.0 for name, part in parts.items()}

    @cached_property
    def robustified(self) -> dict[str, Any]:
        """The record of how a robustified model was made; empty if the folder holds another model."""
        shape = {"teacher": {"sha256": dict[str, str], "kept": dict[str, float]}, "settings": dict[str, Any],
                 "noised": dict[str, int], "texts": dict[str, int], "steps": int, "ended_by": str,
                 "curve": list[dict[str, float]], "gate": {"thresholds": dict[str, float],
                                                           "tokens": dict[str, dict[str, float]],
                                                           "against_flags": dict[str, float | None]}}
        return read_object(self.folder / ROBUSTIFIED, shape) or {}

    @cached_property
    def numbers(self) -> tuple[int, list[str]]:
        """How many numbers the folder's weights have, and their types."""
        count, kinds = 0, set[str]()
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, "np") as stored:
                for name in stored.keys():  # noqa: SIM118
                    tensor = stored.get_slice(name)
                    count, kinds = count + prod(tensor.get_shape()), kinds | {tensor.get_dtype()}
        return count, sorted(DTYPES.get(kind, kind) for kind in kinds)

    @cached_property
    def subspace(self) -> dict[str, Any]:
        """The provenance of the run's subspace, with `sha256`, the hash of its file, and `ranks`, the rank at each layer; empty
        without a subspace."""
        folder = self.run.path / "subspace"
        shape = {"provenance": dict[str, Any], "quality": {"layers": list[dict[str, Any]]}}
        record = read_object(folder / "subspace.json", shape)
        if not record:
            return {}
        sealed = read_object(folder / SEAL, {"subspace.safetensors": {"sha256": str}}) or {}
        return record.get("provenance", {}) | {
            "sha256": sealed.get("subspace.safetensors", {}).get("sha256"),
            "ranks": [row.get("rank") for row in record.get("quality", {}).get("layers", [])]}


def hub_name(path: str) -> str | None:
    """`path` if it is the name of a model or dataset on the hub, else None. A path that is not absolute is taken for such a name,
    because all local paths in a run's settings are absolute."""
    return path if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) else None


def plain(text: object) -> str:
    """A user's text as one line of Markdown, escaped so that it can neither end a table's cell nor act as markup."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", _line(text)).replace("&", "&amp;").replace("<", "&lt;")


def code(text: object) -> str:
    """A user's text as inline code; "not recorded" if there is none."""
    line = _line(text or "").replace("`", "'").replace("|", "/")
    return f"`{line}`" if line else "not recorded"


def _line(text: object) -> str:
    """A text as one line, without control characters and known secrets, cut if it is long."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in masked(str(text))).split())[:LONGEST]


def last_part(path: str) -> str:
    """The last name of a path, because a card must not show folders of this machine. For the path of an environment's class it is
    `FILE.py:CLASS`."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def known(results: Mapping[str, Any]) -> bool:
    """Whether the results have figures for any environment."""
    return any(found for found in results.values())
