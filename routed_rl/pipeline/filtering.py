"""The verb `filter` writes the completions of a run that are fit to train on to a file, and the others, each with a reason, to a
second file.

A filter after the run puts no pressure on the policy. The arm `screen` of `compare` filters in the same way during RL. There the
policy learns to write bad completions that the detector does not see, so this arm is there for contrast, not for protection.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import RunFolder, check_file, write_text
from routed_rl.config import Config, DetectorConfig, FilterConfig
from routed_rl.config.detector import FLAGS
from routed_rl.config.results import RANDOM
from routed_rl.errors import ConfigError
from routed_rl.pipeline.build import load_parts
from routed_rl.pipeline.candidates import Candidate, candidates
from routed_rl.pipeline.judges import Judged, by_chance, by_flags, by_probe, by_subspace
from routed_rl.pipeline.record import read_config, require_base

LEFT_OUT = ".left_out.jsonl"
Line = tuple[Candidate, float | None, str | None]
"""A completion, its score, and the reason why it is left out (None if it stays)."""


def filter_run(target: str, asked: FilterConfig, out: str, *, force: bool = False) -> Path:
    """Write the completions of the run `target` that are fit to train on to the file `out`, which is returned, and all others to
    a second file beside it. `asked` chooses the judge. ConfigError if one of the two files exists, unless `force`, or if no
    completion can be judged. The run may still be training."""
    run, kept = RunFolder.open(target), check_file(Path(out), "--out")
    gone = kept.with_suffix(LEFT_OUT)
    for path in (kept, gone):
        if check_file(path, "--out").exists() and not force:
            raise ConfigError(f"--out {out}: {path} exists; give another, or --force")
    config = read_config(run)
    rows = candidates(run, config)
    if all(row.unfit for row in rows):
        raise ConfigError(f"every completion of {target} is an episode or could not be scored, so nothing would stay; filter a "
                          "run whose environments score single completions")
    judged = _judged(run, config, rows, asked)
    lines = [(row, score, row.unfit or reason) for row, score, reason in zip(rows, judged.scores, judged.reasons, strict=True)]
    write_text(gone, _text(line for line in lines if line[2] is not None))
    write_text(kept, _text(line for line in lines if line[2] is None))
    _say(lines, config.baseline.detector)
    stay = sum(reason is None for *_, reason in lines)
    console.say(f"kept: {kept}, {stay} of {len(rows)} completions; left out and why: {gone}, {len(rows) - stay}, a share "
                f"{1 - stay / len(rows):.4f}")
    return kept


def _judged(run: RunFolder, config: Config, rows: Sequence[Candidate], asked: FilterConfig) -> Judged:
    if asked.detector == FLAGS:
        return by_flags(rows, config.baseline.detector)
    if asked.detector == RANDOM:
        assert asked.share is not None
        return by_chance(rows, asked.share, config.seed)
    parts = load_parts(config)
    require_base(run, config, parts.hash)
    return by_subspace(rows, parts, asked) if asked.subspace else by_probe(rows, parts, run, asked)


def _text(lines: Iterable[Line]) -> str:
    """The completions in `lines`, each with its prompt, as JSON lines. A prompt is text or chat messages."""
    found: list[str] = []
    for row, score, reason in lines:
        prompt, completion = row.said
        line: dict[str, Any] = {"prompt": prompt, "completion": completion, "environment": row.environment, "step": row.step,
                                "reward": row.reward, "score": score}
        found.append(json.dumps(line if reason is None else line | {"reason": reason}) + "\n")
    return "".join(found)


def _say(lines: Sequence[Line], settings: DetectorConfig) -> None:
    """Show for each environment the share of completions that are left out, and the share of flagged ones among all completions
    and among those that stay. `settings` says which flags count."""
    table: list[list[Any]] = []
    for name in dict.fromkeys(row.environment for row, *_ in lines):
        ours = [(row.marked(settings), reason is None) for row, _, reason in lines if row.environment == name]
        left = [marked for marked, stays in ours if stays]
        table.append([name, len(ours), len(ours) - len(left), 1 - len(left) / len(ours),
                      sum(marked for marked, _ in ours) / len(ours), sum(left) / len(left) if left else None])
    console.table("completions", ["environment", "completions", "left out", "share", "flagged", "flagged of what stays"], table)
    for name, count, gone, *_ in table:
        if count == gone:
            console.say(f"note: no completion of {name} stays")
