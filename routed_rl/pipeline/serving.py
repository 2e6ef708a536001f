"""The engine that makes the rollouts of a command. It is opened with the base model, checked, and closed at the end. The
processes of a launched run connect to the same engine."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch

from routed_rl.artifacts import RunFolder, resolve, step_of
from routed_rl.console import say
from routed_rl.envs import task_stream
from routed_rl.errors import ParityError, RolloutError
from routed_rl.model.base import base_weights
from routed_rl.model.prompts import encode_prompts
from routed_rl.pipeline.build import Parts, make_router, take_checkpoint
from routed_rl.pipeline.engines import adapters_for, check_served
from routed_rl.pipeline.record import inherited
from routed_rl.rollout import (
    Engine,
    Lora,
    ParityCheck,
    Part,
    PolicyAdapters,
    PolicyWeights,
    Served,
    fixed_sequences,
    join_servers,
    open_engine,
    parts_of,
)
from routed_rl.routing import Router
from routed_rl.subspace import Subspace


@contextmanager
def serving(parts: Parts, subspace: Subspace | None) -> Iterator[Served | None]:
    """Inside the block, the engine that `rollout.engine` names is open, with the base model. Yields the engine; None if that
    setting is transformers, which needs no engine of its own."""
    config = parts.config.rollout
    if config.engine == "transformers":
        yield None
        return
    check_served(parts)
    wanted = adapters_for(parts, subspace)
    say(f"rollouts      starting {config.engine}, {config.dtype}")
    with _model_folder(parts) as folder, open_engine(config, folder, wanted) as engine:
        served = _served(parts, engine, wanted)
        served.show(deployed=False)
        try:  # before anything is learned, both sides are the base model up to the limit of parity
            ParityCheck(served, parts.model, _sequences(parts), config.parity, None).run(0)
        except (ParityError, RolloutError) as error:
            if not config.urls:
                raise
            raise RolloutError(f"rollout.urls={config.urls}: a server there serves another model than model.path="
                               f"{parts.config.model.path}; {error}") from error
        yield served


@contextmanager
def joining(parts: Parts, subspace: Subspace | None, urls: list[str]) -> Iterator[Served | None]:
    """In a process of a launched run, connect to the servers at `urls`, which the starting command has opened. Yields the engine;
    None if there are no URLs."""
    if not urls:
        yield None
        return
    wanted = adapters_for(parts, subspace)
    with join_servers(parts.config.rollout, urls, parts.model.config.to_dict(), wanted) as engine:
        yield _served(parts, engine, wanted)


def route_served(parts: Parts, served: Served | None, router: Router | None) -> ParityCheck | None:
    """Make `served` send the routed policy to the engine in every later synchronisation. Returns the check that compares the
    engine with the trainer; None if there is no engine."""
    if served is None:
        return None
    if router is not None:
        served.models = _models(parts, parts_of(router.quarantine))
    return ParityCheck(served, parts.model, _sequences(parts), parts.config.rollout.parity,
                       router.quarantine.ablated if router is not None else None)


def at_checkpoint(folder: Path, parts: Parts, run: RunFolder, subspace: Subspace | None, served: Served | None) -> Router | None:
    """Load the checkpoint in `folder` into the model and the engine, and return the router; None in mode `none`."""
    router = make_router(parts, subspace, inherited(run))
    parity = route_served(parts, served, router)
    take_checkpoint(parts, router, folder)
    if served is not None and parity is not None:
        served.sync()
        parity.run(step_of(folder))
    return router


def _models(parts: Parts, quarantine: Sequence[Part]) -> PolicyWeights | PolicyAdapters:
    return (PolicyWeights if parts.adapted is None else PolicyAdapters)(parts.model, quarantine)


def _served(parts: Parts, engine: Engine, wanted: Lora | None) -> Served:
    """Return the engine in a wrapper that sends it the weights or the LoRA of the model, without a quarantine as long as nothing
    is routed. RolloutError if a server has no room for the adapters `wanted`."""
    if parts.adapted is not None and engine.lora is None:
        assert wanted is not None
        raise RolloutError(f"rollout.urls={parts.config.rollout.urls}: a server there has no room for the adapters of this run; "
                           f"start it with --enable-lora --max-loras {wanted.count} --max-lora-rank {wanted.rank} "
                           f"--lora-target-modules {' '.join(wanted.modules)}")
    return Served(engine, _models(parts, []))


def _sequences(parts: Parts) -> list[list[int]]:
    """The token ids on which the parity check compares the engine with the trainer: prompts of each environment, each followed by
    random tokens."""
    count = parts.config.rollout.parity.prompts
    share = -(-count // len(parts.environments))
    prompts = [task.prompt for loaded in parts.environments
               for task in islice(task_stream(loaded, "train", parts.config.seed), share)]
    config = parts.model.config.get_text_config()
    longest = parts.config.rollout.max_length or getattr(config, "max_position_embeddings", 256)
    return fixed_sequences(encode_prompts(parts.tokenizer, prompts[:count]), config.vocab_size, longest - 1)


@contextmanager
def _model_folder(parts: Parts) -> Iterator[Path]:
    """The base model as a folder that vLLM can read: its own folder if it has one, else a temporary copy."""
    own = Path(resolve(parts.config.model.path))
    if own.is_dir() and list(own.glob("*.safetensors")) and parts.config.model.adapter.path is None:
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="routed_rl-") as folder:
        with torch.no_grad():
            parts.model.save_pretrained(folder, state_dict=base_weights(parts.model))
        parts.tokenizer.save_pretrained(folder)
        yield Path(folder)
