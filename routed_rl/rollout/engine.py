"""The interface of an engine, which generates completions in place of transformers; `opening.py` opens one."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from routed_rl.errors import RolloutError
from routed_rl.rollout.heads import HeadPadding
from routed_rl.rollout.weights import NamedTensors

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for the largest rank of its adapters."""


@dataclass(frozen=True)
class Sampling:
    """The settings for sampling completions. Temperature 0 is greedy."""

    temperature: float
    max_tokens: int
    stop: list[int]
    """Token ids that end a completion. The token that ends it stays in the completion."""
    seed: int = 0


@dataclass(frozen=True)
class Lora:
    """The number and size of the adapters that an engine can hold in addition to its weights."""

    rank: int
    """The largest rank of an adapter."""
    modules: list[str]
    """The last components of the names of the modules that an adapter may change."""
    count: int = 1
    """How many adapters the engine can hold at a time."""


class Engine(Protocol):
    """A model from which completions are sampled and whose weights can be replaced."""

    dtype: str
    lora: Lora | None
    padding: HeadPadding | None
    """How the weights must be changed before they are loaded; None if they need no change."""

    def load(self, weights: NamedTensors) -> None:
        """Replace those weights of the engine that `weights` names. The engine's adapters and cached prefixes are dropped."""

    def load_adapter(self, adapter: str, tensors: dict[str, Tensor]) -> None:
        """Replace the adapter of this name, one of `ADAPTERS`. Cached prefixes are dropped."""

    def logprobs(self, sequences: list[list[int]], adapter: str | None) -> list[list[float]]:
        """The log-probability of each token of each sequence except the first, given the tokens before it, at temperature 1.
        `adapter` names the adapter that is added to the weights; None for the weights alone."""
        ...

    def complete(self, prompts: list[list[int]], sampling: Sampling, adapter: str | None) -> list[list[int]]:
        """The token ids of one completion for each prompt. `adapter` is as in `logprobs`."""
        ...

    def sleep(self) -> None:
        """Free the device's memory until `wake` is called, if the engine can do that."""

    def wake(self) -> None:
        """Make the engine ready for requests and for new weights after `sleep`. Calling this again has no effect."""

    def hand_over(self) -> list[str]:
        """Let the processes of a launched run send weights to the engine, until this process itself sends some again. Returns the
        addresses at which those processes reach the engine; empty if the engine runs in this process."""
        ...

    def close(self) -> None:
        """Close the engine. Calling this again has no effect."""


def require_room(ids: list[int], largest: int) -> int:
    """How many tokens may follow the prompt `ids` in an engine in which a prompt and its completion may have `largest` tokens
    together. RolloutError if no token may follow."""
    if len(ids) >= largest:
        raise RolloutError(f"a prompt of {len(ids)} tokens leaves no room for a completion, because vLLM takes {largest} tokens "
                           "together; raise rollout.max_length (--max-model-len of a server of your own), or shorten the prompt")
    return largest - len(ids)


def lora_for(rank: int, modules: list[str], count: int = 1) -> Lora | None:
    """The adapters that an engine must be able to hold: `count` adapters of at least the rank `rank` on modules of these names.
    None if the rank is 0, or so large that vLLM cannot be started with it."""
    fitting = [known for known in LORA_RANKS if known >= rank]
    return Lora(fitting[0], sorted({name.rpartition(".")[2] for name in modules}), count) if fitting and rank else None
