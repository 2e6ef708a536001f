"""Estimates the device memory that is occupied only for a while in each step: the rollouts' cache, then gradients and
activations. Not counted: what an optimizer's step, a collective or a library needs for a moment."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from routed_rl.model.adapter import attach
from routed_rl.model.targets import FOUND, find_writers, freeze
from routed_rl.pipeline.build import Parts
from routed_rl.pipeline.memory import Need, amount, needs, readable
from routed_rl.routing import shape_of
from routed_rl.training.activations import update_bytes
from routed_rl.training.checks import LEAN
from routed_rl.training.trainers import TrainerArguments

ASSUMED = 80e9
"""The memory in bytes of the GPU that is assumed for the plan of a model without weights."""


def activations(parts: Parts, arguments: TrainerArguments, prompt: int) -> Need | None:
    """The memory that the activations of a micro-batch take, for prompts of `prompt` tokens; weights and gradients are not
    counted. None if it cannot be computed."""
    config, completion = parts.config, arguments.max_completion_length or 0
    if any(writer.expert is not None for writer in (parts.writers if config.routing.by_subspace else [])):
        return None  # the experts that tokens choose depend on contents, which are not known here

    def prepare(model: PreTrainedModel) -> list[nn.Module]:
        if (known := vars(parts.model).get(FOUND)) is not None:
            object.__setattr__(model, FOUND, known)
        writers = find_writers(model) if config.routing.by_subspace else []
        if config.model.adapter.trains:
            attach(model, config.model.adapter, writers, config.seed)
        else:
            freeze(model, config.model.freeze)
        return [writer.module for writer in (find_writers(model) if writers else [])]

    try:
        found = update_bytes(parts.model.config, getattr(torch, config.model.dtype), arguments, (prompt, completion), prepare,
                             lean=config.trainer.get(LEAN, True))
    except Exception:  # a model whose forward pass reads the values of its tensors
        return None
    gradients = next(need.bytes for need in needs(parts) if need.name == "gradients")
    rows, kept = arguments.per_device_train_batch_size, "layers' inputs" if arguments.gradient_checkpointing else "all"
    return Need("activations", max(found - gradients, 0.0),
                f"{rows} rows x {prompt} + {completion} tokens that all teach, {kept} kept, counted on a forward and backward of "
                "empty tensors")


def rollouts(parts: Parts, arguments: TrainerArguments, prompt: int) -> Need:
    """The memory that the engine of the rollouts occupies, for prompts of `prompt` tokens: transformers' cache of keys and
    values, or vLLM's share of the GPU."""
    config, numbers = parts.config.rollout, keys_and_values(parts.model.config.get_text_config())
    if config.engine == "vllm_server":
        return Need("rollouts", 0, "on the servers")
    if config.engine == "vllm_colocate":
        return _vllm(parts, numbers)
    rows = arguments.generation_batch_size // arguments.world_size if arguments.generation_batch_size else 0
    tokens, each = prompt + (arguments.max_completion_length or 0), getattr(torch, parts.config.model.dtype).itemsize
    return Need("rollouts", numbers * rows * tokens * each, f"keys and values of {rows} rows x {tokens} tokens x "
                f"{amount(numbers)} x {each}, before the update")


def keys_and_values(model: Any) -> int:
    """How many numbers the cache of a model with this config keeps for a token; 0 for a model without attention, such as Mamba,
    whose state does not grow."""
    if not (heads := getattr(model, "num_attention_heads", None)):
        return 0
    size = getattr(model, "head_dim", None) or model.hidden_size // heads
    return 2 * model.num_hidden_layers * (getattr(model, "num_key_value_heads", None) or heads) * size


def _vllm(parts: Parts, numbers: int) -> Need:
    config, each = parts.config.rollout, getattr(torch, parts.config.rollout.dtype).itemsize
    own = each * sum(shape_of(weight).numel() for name, weight in parts.model.named_parameters() if ".lora_" not in name)
    if (gpu := device_bytes(parts)) is None:
        cache = config.memory_gb * 2**30
        return Need("vllm", own + cache, f"its weights in {config.dtype} {readable(own)} + rollout.memory_gb={config.memory_gb}")
    whole = config.gpu_memory * gpu
    left = whole - own
    how = f"rollout.gpu_memory={config.gpu_memory} of {readable(gpu)}: its weights in {config.dtype} {readable(own)}"
    if left <= 0:
        return Need("vllm", whole, f"{how}, WHICH DO NOT FIT: set rollout.dtype=bfloat16 or a larger rollout.gpu_memory")
    how += f" + keys and values of {amount(left / (numbers * each))} tokens {readable(left)}" if numbers else ""
    return Need("rollouts", whole, f"{how}, freed before the update") if config.sleep else Need("vllm", whole, how)


def device_bytes(parts: Parts) -> float | None:
    """The memory in bytes of the GPU here, or of the GPU assumed for a model without weights; None if the device is the CPU."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return ASSUMED if parts.model.device.type == "meta" else None


def memory_lines(parts: Parts, arguments: TrainerArguments, prompt: int, *, account: bool) -> list[str]:
    """The lines of the plan about memory, for prompts of at most `prompt` tokens. `account` shows the memory line by line, with
    activations."""
    found = [*needs(parts), rollouts(parts, arguments, prompt)]
    if not account:
        listed = ", ".join(f"{need.name} {readable(need.bytes)}" for need in found if need.bytes)
        return [f"memory        about {readable(peak(found))} a device and activations: {listed}"]
    counted = activations(parts, arguments, prompt)
    found += [counted] if counted is not None else []
    whole, device = peak(found), device_bytes(parts)
    fits = "" if device is None else f" of {readable(device)}: " + (
        f"{readable(device - whole)} are left" if whole <= device else f"{readable(whole - device)} TOO MUCH")
    first = f"memory        about {readable(whole)} a device{'' if counted else ' and activations'}{fits}"
    return [first, *(f"  {need.name:12}{readable(need.bytes):>9} = {need.how}" for need in found if need.bytes)]


def peak(found: list[Need]) -> float:
    """The largest total of these needs at any moment, in bytes. It is less than their sum, because the cache of transformers, and
    the memory of a vLLM that sleeps, are freed before the update begins."""
    sizes = {need.name: need.bytes for need in found}
    cache, update = sizes.pop("rollouts", 0.0), sizes.pop("gradients") + sizes.pop("activations", 0.0)
    return sum(sizes.values()) + max(cache, update)
