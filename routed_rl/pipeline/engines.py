"""The options with which vLLM must be started for a run, and the checks that refuse runs which vLLM cannot serve."""

from transformers.pytorch_utils import Conv1D

from routed_rl.config import LABELS
from routed_rl.errors import RolloutError
from routed_rl.model.base import adapted_modules
from routed_rl.pipeline.build import Parts
from routed_rl.rollout import BELOW, LORA_RANKS, Lora, lora_for
from routed_rl.subspace import Subspace
from routed_rl.training.labels import linear_modules
from routed_rl.training.route import bases_of, place_of


def check_served(parts: Parts) -> None:
    """Raise RolloutError for a model that the engine cannot serve, as far as the structure of the model shows this."""
    engine, path = parts.config.rollout.engine, parts.config.model.path
    if engine == "transformers":
        return
    routes = parts.config.routing.mode != "none"
    if routes and any(writer.expert is not None for writer in parts.writers):
        raise RolloutError(f"rollout.engine={engine} cannot serve {path}: the quarantine of a mixture of experts is not pushed "
                           "to vLLM; set rollout=transformers")
    for name, module in adapted_modules(parts.model).items():
        if isinstance(module.get_base_layer(), Conv1D):
            raise RolloutError(f"rollout.engine={engine} cannot serve {path}: vLLM puts no LoRA on {name}, a Conv1D; set "
                               "rollout=transformers, or train the weights: leave model.adapter out")


def adapters_for(parts: Parts, subspace: Subspace | None) -> Lora | None:
    """The adapters for which the engine must have room. A run that trains the weights needs one adapter, which subtracts the
    quarantine from them; None if nothing is routed, or if no adapter can subtract it. A run that trains a LoRA needs one for the
    policy and, if anything is routed, one for the deployed model. RolloutError if their rank is too large for vLLM."""
    ranks = _quarantine_ranks(parts, subspace)
    if parts.adapted is None:
        if not ranks or not _takes_adapter(parts):
            return None
        return lora_for(max(ranks.values()), list(ranks))
    rank = parts.config.model.adapter.r
    modules = dict.fromkeys(adapted_modules(parts.model), rank)
    largest = max(modules.get(name, 0) + ranks.get(name, 0) for name in modules | ranks)
    if (lora := lora_for(largest, list(modules | ranks), 2 if ranks else 1)) is None:
        raise RolloutError(f"rollout.engine={parts.config.rollout.engine}: the policy's adapter would have the rank {largest}, "
                           f"of the LoRA and the quarantine together, and vLLM has none over {LORA_RANKS[-1]}; lower "
                           f"model.adapter.r={rank} or {_rank_setting(parts)}, or set rollout=transformers")
    return lora


def _takes_adapter(parts: Parts) -> bool:
    """Whether an adapter in vLLM can subtract the quarantine from trained weights. In mode `labels` this needs that no linear
    module is a Conv1D; in every other mode, that no writer has a bias."""
    if parts.config.routing.mode == LABELS:
        return not any(isinstance(module, Conv1D) for _, module in linear_modules(parts.model))
    return all(writer.module.bias is None for writer in parts.writers)


def _rank_setting(parts: Parts) -> str:
    return "routing.labels.rank" if parts.config.routing.mode == LABELS else "subspace.rank"


def _quarantine_ranks(parts: Parts, subspace: Subspace | None) -> dict[str, int]:
    """The rank of the quarantine at each module on which it acts, by the module's name; empty if nothing is routed."""
    if parts.config.routing.mode == LABELS:
        linear = {id(module) for _, module in linear_modules(parts.model)}
        return {name.removesuffix(BELOW): parts.config.routing.labels.rank
                for name, module in parts.model.named_modules() if id(module) in linear}
    if subspace is None or not parts.config.routing.by_subspace:
        return {}
    bases = bases_of(subspace, parts.config.subspace)
    return {writer.name: bases[place_of(writer, subspace)].shape[1] for writer in parts.writers}
