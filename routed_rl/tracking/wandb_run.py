"""Logs a run to Weights & Biases: the rows of `metrics.jsonl` under their own names, completions, artifacts with lineage, and an
alert on a halt. Each command that trains is one wandb run. The runs of a folder, and of the folders that a rollback made from it,
are one group. Without a key wandb is offline and never asks for a login. Panels that need the server's query language are not
used."""

import netrc
import os
import re
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import wandb
from pyarrow.parquet import ParquetFile

from routed_rl import console
from routed_rl.artifacts import SEAL, RunFolder, read_json, write_json
from routed_rl.config import TrackingConfig
from routed_rl.config.references import without_secrets
from routed_rl.tracking.metrics import cosine_matrix
from routed_rl.tracking.tracker import Tracker

COLUMNS = ["step", "environment", "prompt", "completion", "reward", "solve", "flags", "push"]
"""Columns of the table of completions. `push` is empty for completions whose push was not stored."""
IDENTITY = "wandb.json"
TITLE = 63
"""Largest number of characters of an alert's title."""


class WandbRun(Tracker):
    """One run in wandb, from `begin` to `finish`."""

    def __init__(self, folder: RunFolder, config: TrackingConfig) -> None:
        self.folder, self.config = folder, config
        self.run: Any = None
        """The run object of wandb, from `begin` on."""
        self.identity: dict[str, Any] = {}
        self.completions = wandb.Table(columns=[*COLUMNS], log_mode="INCREMENTAL", allow_mixed_types=True)
        self._last: dict[str, Any] = {}

    def begin(self, step: int) -> None:
        self.identity = identify(self.folder)
        settings = without_secrets(self.folder.settings())
        manifest = read_json(self.folder.manifest)
        attempts, parent = self.identity["attempts"], self.identity["parent"]
        job = "resume" if attempts else "rollback" if parent else "train"
        source = self.identity["id"] if attempts else parent
        origin = f"{source}-checkpoint:step-{step}" if step and source else None
        self.run = wandb.init(project=self.config.project, name=self.folder.path.name, group=self.identity["group"], job_type=job,
                              dir=str(self.folder.path), mode=mode(), tags=[settings["routing"]["mode"]],
                              config={**settings, "versions": manifest.get("versions"), "lineage": manifest.get("lineage"),
                                      "went_on_from": origin},
                              settings=wandb.Settings(silent=True, console="off"))
        write_json(self.folder.path / IDENTITY, {**self.identity, "attempts": [*attempts, self.run.id]})
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        if self.run.offline:
            console.say(f"wandb: offline, in {self.folder.path / 'wandb'}; to upload: wandb sync {self.run.settings.sync_dir}")
        elif origin:
            self._use(origin)
        if self.folder.subspace.exists():
            self._keep("subspace", self.folder.subspace, {"step": 0})

    def row(self, row: dict[str, Any]) -> None:
        known = {key: value for key, value in row.items() if value is not None}
        if norms := layer_norms(known):
            # wandb draws one histogram per step as a map of step by bin; here each bin is a layer.
            known["quarantine/layers"] = wandb.Histogram(np_histogram=(np.array(norms), np.arange(len(norms) + 1)))
        self.run.log(known)
        self._last = {**self._last, **known}
        for completion in some_completions(self.folder, row["step"], self.config.table_rows):
            self.completions.add_data(*(completion.get(column) for column in COLUMNS))

    def checkpoint(self, step: int) -> None:
        self._tables(step)
        folder = self.folder.checkpoint(step)
        facts = {"step": step, "parent": self.identity["parent"]}
        self._keep("checkpoint", folder, facts, only=None if self.config.upload_checkpoints else [SEAL], step=step)
        if (folder / "quarantine.safetensors").exists():
            self._keep("quarantine", folder, facts, only=["quarantine.safetensors"], step=step)

    def halted(self, record: dict[str, Any]) -> None:
        verdict = record["verdicts"][0]
        title = f"halted: {verdict['rule']} of {record['environment'] or 'the run'}"
        text = "\n".join([f"{self.folder.path} at step {record['step']}: {verdict['sentence']}", *record["commands"]])
        self.run.alert(title=title[:TITLE], text=text, level="ERROR")
        self.run.tags = (*(self.run.tags or ()), "halted")
        self.run.summary.update({f"halted/{key}": record[key] for key in ("step", "environment", "since", "checkpoint_before")}
                                | {"halted/rule": verdict["rule"], "halted/sentence": verdict["sentence"]})

    def report(self, page: Path) -> None:
        self.run.log({"report": wandb.Html(str(page), inject=False), "step": self._last.get("step", 0)})

    def finish(self, exit_code: int) -> None:
        if self.run is not None:
            self._tables(self._last.get("step", 0))
            self.run.finish(exit_code=exit_code)

    def _tables(self, step: int) -> None:
        """Log, at `step`, the completions that were added since the last call, and the newest cosines between the environments'
        parts of the quarantine."""
        if len(self.completions.data):
            self.run.log({"completions": self.completions, "step": step})
        names, cosines = cosine_matrix(self._last)
        if names:
            rows: list[Any] = [[name, *values] for name, values in zip(names, cosines, strict=True)]
            self.run.log({"cosines": wandb.Table(columns=["", *names], data=rows), "step": step})

    def _keep(self, kind: str, folder: Path, facts: dict[str, Any], only: list[str] | None = None, step: int | None = None
              ) -> None:
        """Log files of a sealed folder as an artifact of the type `kind`: all of them, or those whose names are in `only`. The
        artifact's metadata has `facts` and the hashes of all files in the folder. With `step`, it has the alias `step-N`."""
        artifact = wandb.Artifact(f"{self.identity['id']}-{kind}", kind, metadata={
            **facts, "folder": str(folder), "group": self.identity["group"], "sealed": read_json(folder / SEAL)})
        for path in sorted(folder.rglob("*")):
            if path.is_file() and (only is None or path.name in only):
                artifact.add_file(str(path), name=str(path.relative_to(folder)))
        self.run.log_artifact(artifact, aliases=None if step is None else ["latest", f"step-{step}"])

    def _use(self, name: str) -> None:
        """Record on the server that this run uses the artifact `name`. If the artifact was never uploaded, only the run's config
        names it."""
        try:
            self.run.use_artifact(name)
        except (wandb.Error, ValueError) as error:
            console.say(f"wandb: {name} is not on the server, so only the run's config has its lineage ({type(error).__name__})")


def mode() -> Any:
    """The mode that `WANDB_MODE` asks for, but offline instead of online if there is no key, so that wandb never asks for one."""
    wanted = os.environ.get("WANDB_MODE") or "online"
    return "offline" if wanted == "online" and not has_key() else wanted


def has_key() -> bool:
    """Whether there is a key for the wandb server in use, in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return file.exists() and netrc.netrc(str(file)).authenticators(host) is not None
    except netrc.NetrcParseError:
        return False


def identify(folder: RunFolder) -> dict[str, Any]:
    """The identity of a run folder in wandb: `id`; `group`, which a rollback shares with the run that it came from; `parent`, the
    id of that run or None; and `attempts`, the ids of the wandb runs so far."""
    if (own := folder.path / IDENTITY).exists():
        return read_json(own)
    ours = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', folder.path.name)}-{secrets.token_hex(3)}"
    lineage = read_json(folder.manifest).get("lineage") or {}
    parent = RunFolder(lineage["parent"]).path / IDENTITY if lineage else None
    known = read_json(parent) if parent and parent.exists() else {}
    return {"id": ours, "group": known.get("group", ours), "parent": known.get("id"), "attempts": []}


def layer_norms(row: dict[str, Any]) -> list[float]:
    """The norm |C| of the quarantine in each layer, from a row of `metrics.jsonl`; 0 for layers without a target."""
    found = {int(key.split("/")[2]): value for key, value in row.items() if key.startswith("quarantine/layer/")}
    return [found.get(layer, 0.0) for layer in range(max(found, default=-1) + 1)]


def some_completions(folder: RunFolder, step: int, count: int) -> list[dict[str, Any]]:
    """At most `count` completions of a step, read from the run's files, equally many of each environment."""
    rows = [row for path in sorted(folder.completions.glob(f"step-{step:06d}-*.parquet")) if count
            for row in ParquetFile(path).read().to_pylist()]
    each = count // max(len({row["environment"] for row in rows}), 1) or 1
    taken: dict[str, int] = {}
    chosen = []
    for row in rows:
        taken[row["environment"]] = taken.get(row["environment"], 0) + 1
        if taken[row["environment"]] <= each:
            chosen.append(row)
    return chosen[:count]
