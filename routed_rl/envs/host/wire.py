"""Messages between the trainer and an environment's process. They are lines of JSON, so that neither side executes code that the
other sends.

Data of a task that JSON would change (tuples, sets, objects) is pickled by the process that made it. The trainer keeps the
pickled bytes as `Sealed` and sends them back without opening them; only processes of the same environment ever unpickle them.
"""

import base64
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from routed_rl.envs.core import Score, Task
from routed_rl.envs.faults import ContractError, Failure, Kind

LARGEST = 64 << 20
"""The largest size of one message in bytes."""


class WireError(ValueError):
    """A message does not follow the format of this module."""


@dataclass(frozen=True, eq=True)
class Sealed(Mapping[str, Any]):
    """The pickled data of a task, which only the environment's process opens. The trainer can compare it and send it back, but
    not read it: as a mapping it is empty."""

    pickled: str

    def __getitem__(self, key: str) -> Any:
        raise KeyError(f"{key}: this task's data is not JSON-like and stays in the environment's process; set isolate=false")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def frame(message: Any) -> bytes:
    """`message` as one line of bytes. Any text and any float are kept exactly. WireError if the line is larger than `LARGEST`."""
    line = json_text(message).encode("utf-8", "surrogatepass") + b"\n"
    if len(line) > LARGEST:
        raise WireError(f"a message of {len(line)} bytes is larger than {LARGEST}")
    return line


def json_text(message: Any) -> str:
    # As characters, not as escapes: two lone surrogates side by side would come back as one character.
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


def pack_task(task: Task) -> list[Any]:
    """A task as plain JSON values; WireError if the prompt is neither text nor chat messages."""
    if not (isinstance(task.prompt, str) or (isinstance(task.prompt, list) and is_plain(task.prompt))):
        raise WireError(f"a prompt is {type(task.prompt).__name__}, neither text nor plain chat messages")
    return [task.prompt, task.stage, *_pack_data(task.data)]


def unpack_task(message: Any, *, sealed: bool) -> Task:
    """The task in a message. With `sealed`, pickled data becomes `Sealed` and is not opened; the trainer must always set it. With
    `sealed=False` the data is unpickled."""
    match message:
        case [str() | list() as prompt, int(stage), str(pickled)]:
            return Task(prompt, Sealed(pickled) if sealed else pickle.loads(base64.b64decode(pickled)), stage)
        case [str() | list() as prompt, int(stage), dict(data)]:
            return Task(prompt, data, stage)
    raise WireError(f"no task: {str(message)[:80]}")


def pack_score(result: Score | Failure) -> dict[str, Any]:
    """A score as {"score": list of its fields}, or a failure as {"error": reason, "place": ..., "remedy": ..., "kind": ...}."""
    if isinstance(result, Failure):
        return {"error": result.reason, "place": result.place, "remedy": result.remedy, "kind": result.kind}
    return {"score": [result.reward, result.solve, result.flags, result.metrics, result.spans]}


def unpack_failure(message: Mapping[str, Any]) -> Failure:
    reason, place, remedy = (str(message.get(key) or "")[:500] for key in ("error", "place", "remedy"))
    kinds: tuple[Kind, ...] = get_args(Kind)
    told = message.get("kind")
    kind = kinds[kinds.index(told) if told in kinds else 0]  # the first kind stands for any other error
    return Failure(reason, place=place, remedy=remedy, kind=kind)


def unpack_score(message: Any) -> Score:
    """A score from a list of its fields, which `Score` checks one by one. WireError if the message is wrong."""
    try:
        return Score(*message)
    except (TypeError, ValueError):
        raise WireError(f"no score: {str(message)[:80]}") from None


def _pack_data(data: Mapping[str, Any]) -> list[Any]:
    """A list of one entry: `data` itself if JSON keeps it exactly, otherwise its pickle as base64 text. ContractError if `data`
    cannot be pickled."""
    if isinstance(data, Sealed):
        return [data.pickled]
    try:
        if type(data) is dict and is_plain(data):
            json.dumps(data)  # refuses integers of thousands of digits
            return [data]
    except (ValueError, RecursionError):
        pass
    try:
        return [base64.b64encode(pickle.dumps(data)).decode("ascii")]
    except Exception as error:
        raise ContractError(f"the data of a task cannot be pickled: {type(error).__name__}: {error}",
                            "give data that JSON can hold, or set env.NAME.isolate=false") from error


def is_plain(value: Any) -> bool:
    """Whether JSON gives back the same value of the same type."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and is_plain(inner) for key, inner in value.items())
    return all(map(is_plain, value)) if kind is list else kind in (str, int, float, bool, type(None))
