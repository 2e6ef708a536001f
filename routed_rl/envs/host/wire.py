"""What crosses between the trainer and an environment's process: lines of JSON, so that no side runs the other's bytes.

Data of a task that JSON would change (tuples, sets, objects) is pickled by the process that made it and stays sealed in the
trainer, which hands it back unread: only processes of the same environment ever unpickle it.
"""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from routed_rl.envs.core import Failure, Score, Task

LARGEST = 64 << 20
"""Bytes of one message, at most."""
LARGEST_SCORE = 1 << 16
"""Characters of one packed score, at most, about."""


class WireError(ValueError):
    """A message that is none of ours."""


@dataclass(frozen=True, eq=True)
class Sealed(Mapping[str, Any]):
    """Data that stays in the environment's process; here it can be compared and handed back, not read."""

    pickled: str

    def __getitem__(self, key: str) -> Any:
        raise KeyError(f"{key}: this task's data is not JSON-like and stays in the environment's process; set isolate=false")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def frame(message: Any) -> bytes:
    """`message` as one line. Any text and any float survive; WireError where it is too large."""
    line = json_text(message).encode("utf-8", "surrogatepass") + b"\n"
    if len(line) > LARGEST:
        raise WireError(f"a message of {len(line)} bytes is larger than {LARGEST}")
    return line


def json_text(message: Any) -> str:
    # As characters, not as escapes: two lone surrogates side by side would come back as one character.
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


def pack_task(task: Task) -> list[Any]:
    """WireError for a prompt that is neither text nor chat messages."""
    if not (isinstance(task.prompt, str) or (isinstance(task.prompt, list) and is_plain(task.prompt))):
        raise WireError(f"a prompt is {type(task.prompt).__name__}, neither text nor plain chat messages")
    return [task.prompt, task.stage, *_pack_data(task.data)]


def unpack_task(message: Any, *, sealed: bool) -> Task:
    """`sealed`: leave pickled data closed, as the trainer must."""
    if not (isinstance(message, list) and len(message) == 4 and isinstance(message[0], (str, list))
            and type(message[1]) is int and type(message[3]) is bool and isinstance(message[2], str if message[3] else dict)):
        raise WireError(f"no task: {str(message)[:80]}")
    prompt, stage, data, pickled = message
    if pickled:
        data = Sealed(data) if sealed else pickle.loads(base64.b64decode(data))
    return Task(prompt, data, stage)


def pack_score(score: Score | Failure) -> Any:
    """A list of its parts, or why it failed; one that is too large is a failure."""
    if isinstance(score, Failure):
        return score.reason
    packed = [score.reward, score.solve, score.flags, {key: float(value) for key, value in score.metrics.items()}]
    size = sum(map(len, score.flags)) + sum(map(len, score.metrics)) + 16 * len(score.metrics)
    return packed if size <= LARGEST_SCORE else f"returned a score of {size} characters"


def unpack_score(message: Any) -> Score | Failure:
    """Plain numbers and names, checked one by one."""
    if isinstance(message, str):
        return Failure(message[:200])
    match message:
        case [reward, solve, dict(flags), dict(metrics)] if all(
                type(value) is float for value in (reward, solve, *flags.values(), *metrics.values())):
            return Score(reward, solve, flags, metrics)
    raise WireError(f"no score: {str(message)[:80]}")


def _pack_data(data: Mapping[str, Any]) -> tuple[Any, bool]:
    """(JSON object, False) where JSON gives back exactly the same, else (pickle in base64, True)."""
    if isinstance(data, Sealed):
        return data.pickled, True
    try:
        if type(data) is dict and is_plain(data):
            json.dumps(data)  # refuses integers of thousands of digits
            return data, False
    except (ValueError, RecursionError):
        pass
    return base64.b64encode(pickle.dumps(data)).decode("ascii"), True


def is_plain(value: Any) -> bool:
    """Whether JSON gives back the same value of the same type."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and is_plain(inner) for key, inner in value.items())
    return all(map(is_plain, value)) if kind is list else kind in (str, int, float, bool, type(None))
