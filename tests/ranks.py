"""Functions in several processes that are ranks of one gloo group. Not a test itself.

The processes are forked from a server that has imported everything once, so starting them costs little.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.conftest", "tests.pipeline", "tests.parts", "trl.trainer.grpo_trainer"])


def on_ranks(function: Callable[..., Any], *arguments: Any, world: int = 2, timeout: float = 240) -> list[Any]:
    """`function(*arguments)` of every rank; with one, in a process of its own too. Raises what a rank raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(world)]
    processes = [CONTEXT.Process(target=_rank, args=(theirs, rank, world, port, function, arguments), daemon=True)
                 for rank, (_, theirs) in enumerate(pipes)]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()
    try:
        results = []
        for rank, (ours, _) in enumerate(pipes):
            assert ours.poll(timeout), f"rank {rank} has not answered within {timeout} s"
            good, result = pickle.loads(ours.recv_bytes())
            assert good, f"rank {rank}: {result}"
            results.append(result)
        return results
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(connection: Connection, rank: int, world: int, port: int, function: Callable[..., Any],
          arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    try:
        import torch

        torch.set_num_threads(1)
        result = True, function(*arguments)
    except BaseException:
        result = False, traceback.format_exc()
    # Plain bytes: a tensor in shared memory would be gone with this process.
    connection.send_bytes(pickle.dumps(result))
