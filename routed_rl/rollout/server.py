"""One or several servers `vllm serve` as an engine. On a CPU, weights go through files in shared memory, so servers must be on
this machine; on GPUs they go through NCCL, as in TRL. If a run has several processes, each requests its own completions, and the
first one sends the weights for all."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from routed_rl.config import RolloutConfig
from routed_rl.ranks import RANKS
from routed_rl.rollout.client import PolicyClient
from routed_rl.rollout.colocate import memory_folder, write_adapter
from routed_rl.rollout.engine import Lora, Sampling, require_room
from routed_rl.rollout.heads import HeadPadding
from routed_rl.rollout.launch import LaunchedServer
from routed_rl.rollout.settings import check_settings, served_lora
from routed_rl.rollout.weights import NamedTensors
from routed_rl.threads import in_threads

GROUP_PORT = 51216
"""The port of the first server's NCCL group; TRL's default."""
REQUESTS = 64
"""The largest number of requests that are sent to one server at a time. The value is TRL's."""


class ServerEngine:
    """An engine that divides prompts among the servers behind `clients`. Weights and adapters go to all servers, at times when no
    process of the run waits for an answer."""

    def __init__(self, clients: list[PolicyClient], dtype: str, lora: Lora | None, launched: LaunchedServer | None,
                 folder: Path) -> None:
        self.clients, self.dtype, self.lora, self._launched, self._folder = clients, dtype, lora, launched, folder
        self.padding: HeadPadding | None = None

    @classmethod
    def open(cls, config: RolloutConfig, folder: Path, lora: Lora | None) -> "ServerEngine":
        """Start a server, or connect to those of `config.urls`. If that fails, a server that was started is stopped."""
        scratch = memory_folder()
        launched = LaunchedServer(config, folder, lora) if config.launch else None
        try:
            if launched is not None:
                launched.wait()
            urls = [launched.url] if launched is not None else config.urls
            clients = [PolicyClient(url, config, GROUP_PORT + place, _fate(launched)) for place, url in enumerate(urls)]
            servers = [client.get_server_info() for client in clients]
            for client, server in zip(clients, servers, strict=True):
                check_settings(client.base_url, server, config)
                if launched is None:
                    client.reload(client.root)  # because an earlier run may have left its weights there
            return cls(clients, config.dtype, lora if launched is not None else served_lora(servers, lora), launched, scratch)
        except BaseException:
            if launched is not None:
                launched.stop()
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    @classmethod
    def join(cls, config: RolloutConfig, urls: list[str], lora: Lora | None) -> "ServerEngine":
        """In one of several processes, connect to the servers that the starting command has opened and checked."""
        clients = [PolicyClient(url, config, GROUP_PORT + place, _fate(None)) for place, url in enumerate(urls)]
        adapters = served_lora([client.get_server_info() for client in clients], lora)
        return cls(clients, config.dtype, adapters, None, memory_folder())

    def load(self, weights: NamedTensors) -> None:
        first = RANKS.rank == 0  # the others take part in gathering the shards, and keep nothing
        named = [(name, value.to(getattr(torch, self.dtype))) for name, value in weights if first]
        with _alone():
            if first:
                self._push(named)

    def _push(self, named: list[tuple[str, Tensor]]) -> None:
        if torch.cuda.is_available():
            described = [(name, self.dtype, list(value.shape)) for name, value in named]
            for client in self.clients:
                if client.communicator is None:
                    client.init_communicator(torch.cuda.current_device())
                client.update_named_params(described, iter(named))
                client.reset_prefix_cache()
            return
        folder = self._folder / "weights"
        folder.mkdir(exist_ok=True)
        try:
            save_file(_unshared(named), folder / "model.safetensors")
            self._at_all(lambda client: client.reload(str(folder)))
        finally:
            shutil.rmtree(folder)

    def load_adapter(self, adapter: str, tensors: dict[str, Tensor]) -> None:
        assert self.lora is not None
        with _alone():
            if RANKS.rank == 0:
                write_adapter(self._folder / adapter, tensors, self.lora)
                self._at_all(lambda client: client.load_adapter(adapter, str(self._folder / adapter)))

    def logprobs(self, sequences: list[list[int]], adapter: str | None) -> list[list[float]]:
        # Every server answers for every sequence, because each one may be wrong on its own.
        settings = {"max_tokens": 1, "prompt_logprobs": 0, "temperature": 1.0}
        by_server = self._at_all(lambda client: client.complete(sequences, adapter or client.own, settings))
        rows = [[_chosen(ids, choice) for ids, choice in zip(sequences, choices, strict=True)] for choices in by_server]
        return [max(found, key=lambda row: max(abs(a - b) for a, b in zip(row, found[0], strict=True)))
                for found in zip(*rows, strict=True)]

    def complete(self, prompts: list[list[int]], sampling: Sampling, adapter: str | None) -> list[list[int]]:
        settings = {"temperature": sampling.temperature, "stop_token_ids": sampling.stop, "ignore_eos": True}

        def one(place: int) -> list[int]:
            # One call for each prompt: a call has one seed, and prompts that share it would share their random numbers.
            client, ids = self.clients[place % len(self.clients)], prompts[place]
            limit = self._limit(ids, sampling.max_tokens)
            return client.complete([ids], adapter or client.own, {
                **settings, "max_tokens": limit, "seed": sampling.seed + place})[0]["token_ids"]

        return in_threads(one, range(len(prompts)), REQUESTS * len(self.clients))

    def generate(self, prompts: list[list[int]], features: Any = None, **sampling: Any) -> dict[str, Any]:
        """The method that TRL's `VLLMGeneration` calls on its client. The prompts are divided evenly among the servers. Each
        server gets one request for its prompts, except that prompts which leave room for fewer tokens than `max_tokens` go into
        requests with a lower `max_tokens`."""
        assert features is None, "images are not covered"
        share = -(-len(prompts) // len(self.clients))
        requests: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, ids in enumerate(prompts):
            requests[place // share, self._limit(ids, sampling["max_tokens"])].append(place)

        def one(request: tuple[int, int]) -> dict[str, Any]:
            client, limit = request
            settings: dict[str, Any] = sampling | {"max_tokens": limit}
            return self.clients[client].generate(prompts=[prompts[place] for place in requests[request]], **settings)

        answers = in_threads(one, [*requests], REQUESTS * len(self.clients))
        rows: dict[str, list[Any]] = {key: [None] * len(prompts) for key in answers[0]}
        for places, answer in zip(requests.values(), answers, strict=True):
            for key, found in answer.items():
                for place, row in zip(places, found, strict=True):
                    rows[key][place] = row
        return rows

    def _limit(self, ids: list[int], wanted: int) -> int:
        """How many tokens may follow the prompt `ids`, at most `wanted`. RolloutError if the servers have no room for any."""
        largest = min(client.max_length for client in self.clients)
        return min(wanted, require_room(ids, largest))

    @contextmanager
    def asking(self, adapter: str) -> Iterator[None]:
        """Inside this context `generate` requests completions by the adapter of this name."""
        before = [client.model for client in self.clients]
        for client in self.clients:
            client.model = adapter
        try:
            yield
        finally:
            for client, model in zip(self.clients, before, strict=True):
                client.model = model

    def _at_all(self, call: Callable[[PolicyClient], Any]) -> list[Any]:
        return in_threads(call, self.clients, len(self.clients))

    def sleep(self) -> None:
        """Has no effect, because a server has a device of its own."""

    def wake(self) -> None:
        pass

    def hand_over(self) -> list[str]:
        for client in self.clients:
            with suppress(Exception):  # a server that is gone cannot be told
                client.close_communicator()
        return [client.base_url for client in self.clients]

    def close(self) -> None:
        self.hand_over()
        if self._launched is not None:
            self._launched.stop()
            self._launched.log.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for all processes of the run before the block and after it, so that inside the block none of them waits for an answer
    of a server."""
    RANKS.wait()
    yield
    RANKS.wait()


def _unshared(named: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors by name, so that safetensors accepts them: it refuses one tensor under two names, so the second gets a copy."""
    places: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in named:
        tensors[name] = value.clone() if value.data_ptr() in places else value.contiguous()
        places.add(value.data_ptr())
    return tensors


def _chosen(ids: list[int], choice: dict[str, Any]) -> list[float]:
    return [found[str(token)]["logprob"] for token, found in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True)]


def _fate(launched: LaunchedServer | None) -> Callable[[], str | None]:
    return lambda: launched.last_lines() if launched is not None and launched.process.poll() is not None else None
