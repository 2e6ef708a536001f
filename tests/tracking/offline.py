"""Reads what wandb wrote offline, in a process of its own: prints one JSON object. Not a test.

    python -m tests.tracking.offline RUN/wandb/offline-run-*/*.wandb
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


def records(path: Path) -> Iterator[Any]:
    """Records in LevelDB's log format: blocks of 32 KiB, in them pieces of (checksum, length, kind, bytes)."""
    from wandb.proto import wandb_internal_pb2

    data, offset, whole = path.read_bytes(), HEADER, b""
    while offset + HEADER <= len(data):
        if (left := BLOCK - offset % BLOCK) < HEADER:
            offset += left
            continue
        length, kind = int.from_bytes(data[offset + 4:offset + 6], "little"), data[offset + 6]
        whole += data[offset + HEADER:offset + HEADER + length]
        offset += HEADER + length
        if kind in (1, 4):  # whole in one piece, or the last of several
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def read(path: Path) -> dict[str, Any]:
    """History rows, config, summary, artifacts and alerts of a run."""
    found: dict[str, Any] = {"rows": [], "config": {}, "summary": {}, "artifacts": [], "alerts": [], "metrics": []}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"group": record.run.run_group, "name": record.run.display_name, "job": record.run.job_type,
                      "tags": list(record.run.tags), "project": record.run.project}
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found["rows"].append(values(record.history.item))
        elif kind == "summary":
            found["summary"] |= values(record.summary.update)
        elif kind == "artifact":
            found["artifacts"].append(artifact(record.artifact))
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found["artifacts"].append(artifact(record.request.log_artifact.artifact))
        elif kind == "alert":
            found["alerts"].append({"title": record.alert.title, "text": record.alert.text, "level": record.alert.level})
        elif kind == "metric":
            found["metrics"].append([record.metric.name or record.metric.glob_name, record.metric.step_metric])
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def artifact(logged: Any) -> dict[str, Any]:
    return {"name": logged.name, "type": logged.type, "aliases": list(logged.aliases),
            "metadata": json.loads(logged.metadata or "{}"),
            "files": [entry.path for entry in logged.manifest.contents]}


def read_elsewhere(run: Path, attempt: int = 0) -> dict[str, Any]:
    """What `read` finds of a run folder's attempt, read by another process."""
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    command = [sys.executable, "-m", "tests.tracking.offline", str(files[attempt])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    print(json.dumps(read(Path(sys.argv[1]))))
