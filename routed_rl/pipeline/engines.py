"""The options with which vLLM must be started for a run, and the runs that it cannot serve."""

from transformers.pytorch_utils import Conv1D

from routed_rl.errors import RolloutError
from routed_rl.model.base import adapted_modules
from routed_rl.pipeline.build import Parts
from routed_rl.rollout import LORA_RANKS, Lora, lora_for
from routed_rl.subspace import Subspace
from routed_rl.training.route import bases_of


def check_served(parts: Parts) -> None:
    """Refuse a model that the engine cannot serve, as far as its structure shows that."""
    engine, path = parts.config.rollout.engine, parts.config.model.path
    if engine == "transformers":
        return
    if parts.config.routing.by_subspace and any(writer.expert is not None for writer in parts.writers):
        raise RolloutError(f"rollout.engine={engine} cannot serve {path}: the quarantine of a mixture of experts is not pushed "
                           "to vLLM; set rollout=transformers")
    for name, module in adapted_modules(parts.model).items():
        if isinstance(module.get_base_layer(), Conv1D):
            raise RolloutError(f"rollout.engine={engine} cannot serve {path}: vLLM puts no LoRA on {name}, a Conv1D; set "
                               "rollout=transformers, or train the weights: leave model.adapter out")


def adapters_for(parts: Parts, subspace: Subspace | None) -> Lora | None:
    """The adapters that the engine must hold. If the weights are trained this is one for minus the quarantine, or none if vLLM
    has no adapter for such writers; if a LoRA is trained these are the policy's and the deployed model's."""
    ranks = _quarantine_ranks(parts, subspace)
    if parts.adapted is None:
        if subspace is None or any(writer.module.bias is not None for writer in parts.writers):
            return None
        return lora_for(max(ranks.values()), list(ranks))
    rank = parts.config.model.adapter.r
    modules = dict.fromkeys(adapted_modules(parts.model), rank)
    largest = max(modules.get(name, 0) + ranks.get(name, 0) for name in modules | ranks)
    if (lora := lora_for(largest, list(modules | ranks), 1 if subspace is None else 2)) is None:
        raise RolloutError(f"rollout.engine={parts.config.rollout.engine}: the policy's adapter would have the rank {largest}, "
                           f"of the LoRA and the subspace together, and vLLM has none over {LORA_RANKS[-1]}; lower "
                           f"model.adapter.r={rank} or subspace.rank, or set rollout=transformers")
    return lora


def _quarantine_ranks(parts: Parts, subspace: Subspace | None) -> dict[str, int]:
    """The quarantine's rank for each writer; empty without a subspace."""
    if subspace is None:
        return {}
    bases = bases_of(subspace, parts.config.subspace)
    return {writer.name: bases[writer.layer].shape[1] for writer in parts.writers}
