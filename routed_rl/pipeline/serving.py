"""The rollouts' engine of a command: opened with the base model, checked that it is the same one, closed at the end. The
processes of a launch join it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch

from routed_rl.artifacts import resolve
from routed_rl.console import say
from routed_rl.envs import task_stream
from routed_rl.errors import ParityError, RolloutError
from routed_rl.model.prompts import encode_prompts
from routed_rl.pipeline.build import Parts
from routed_rl.rollout import Lora, ParityCheck, PolicyWeights, Served, fixed_sequences, join_servers, lora_for, open_engine
from routed_rl.routing import Router
from routed_rl.subspace import Subspace


@contextmanager
def serving(parts: Parts, subspace: Subspace | None) -> Iterator[Served | None]:
    """The engine that `rollout.engine` names, with the base model; None for transformers."""
    config = parts.config.rollout
    if config.engine == "transformers":
        yield None
        return
    if subspace is not None and any(writer.expert is not None for writer in parts.writers):
        raise RolloutError(f"rollout.engine={config.engine} cannot serve {parts.config.model.path}: the quarantine of a "
                           "mixture of experts is not pushed to vLLM; set rollout=transformers")
    say(f"rollouts      starting {config.engine}, {config.dtype}")
    with _model_folder(parts) as folder, open_engine(config, folder, _lora(parts, subspace)) as engine:
        served = Served(engine, PolicyWeights(parts.model, []))
        try:  # before anything is pushed both sides are the base model, to the limit of parity
            ParityCheck(served, parts.model, _sequences(parts), config.parity, None).run(0)
        except (ParityError, RolloutError) as error:
            if not config.urls:
                raise
            raise RolloutError(f"rollout.urls={config.urls}: a server there serves another model than model.path="
                               f"{parts.config.model.path}; {error}") from error
        yield served


@contextmanager
def joining(parts: Parts, subspace: Subspace | None, urls: list[str]) -> Iterator[Served | None]:
    """In a process of a launch: the servers at `urls`, that the command which started it has opened; None without any."""
    if not urls:
        yield None
        return
    with join_servers(parts.config.rollout, urls, parts.model.config.to_dict(), _lora(parts, subspace)) as engine:
        yield Served(engine, PolicyWeights(parts.model, []))


def route_served(parts: Parts, served: Served | None, router: Router | None) -> ParityCheck | None:
    """From now on `served` pushes the routed policy; what compares the two."""
    if served is None:
        return None
    if router is not None:
        served.weights = PolicyWeights(parts.model, router.quarantine.targets)
    return ParityCheck(served, parts.model, _sequences(parts), parts.config.rollout.parity,
                       router.quarantine.ablated if router is not None else None)


def _sequences(parts: Parts) -> list[list[int]]:
    """Prompts of the environments in turn, with random tokens after them."""
    count = parts.config.rollout.parity.prompts
    share = -(-count // len(parts.environments))
    prompts = [task.prompt for loaded in parts.environments
               for task in islice(task_stream(loaded, "train", parts.config.seed), share)]
    config = parts.model.config.get_text_config()
    longest = parts.config.rollout.max_length or getattr(config, "max_position_embeddings", 256)
    return fixed_sequences(encode_prompts(parts.tokenizer, prompts[:count]), config.vocab_size, longest - 1)


def _lora(parts: Parts, subspace: Subspace | None) -> Lora | None:
    """An adapter for the quarantine; None where there is none, or vLLM has no adapters for such writers."""
    if subspace is None:
        return None
    writers, settings = parts.writers, parts.config.subspace
    if any(writer.module.bias is not None for writer in writers):
        return None
    bases = subspace.writer_bases(settings.layout, settings.drop_below, settings.shared_rank)
    return lora_for(max(bases[writer.layer].shape[1] for writer in writers),
                    [writer.name.rpartition(".")[2] for writer in writers])


@contextmanager
def _model_folder(parts: Parts) -> Iterator[Path]:
    """The base model as a folder that vLLM reads: its own where it has one, else a copy for as long as it is needed."""
    own = Path(resolve(parts.config.model.path))
    if own.is_dir() and list(own.glob("*.safetensors")):
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="routed_rl-") as folder:
        with torch.no_grad():
            parts.model.save_pretrained(folder)
        parts.tokenizer.save_pretrained(folder)
        yield Path(folder)
