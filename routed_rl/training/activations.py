"""Estimates the memory that the update by one micro-batch takes beside the weights. The update runs on tensors without contents,
which cost no memory and no arithmetic, and the bytes that would be in use at once are counted. Not covered: a kernel's own
workspace."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from routed_rl.training.lean.forward import changing_states
from routed_rl.training.trainers import TrainerArguments


class Alive(TorchDispatchMode):
    """Context that counts the bytes of all tensors that are made inside it, or passed to `see`, for as long as they live. `now`
    is the count at present, and `peak` the highest count so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            self.see(each)
        return made

    def see(self, tensor: Any) -> None:
        """Count the memory of a tensor. Views that share memory are counted once. Anything but a tensor is ignored."""
        if not isinstance(tensor, Tensor) or (storage := tensor.untyped_storage()) in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = True
        weakref.finalize(storage, self._gone, size).atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size


class _Tapped(torch.autograd.Function):
    """Returns a writer's output `y` unchanged, and keeps the writer's input `x` for the backward pass, as the autograd function
    of a routed writer does, so that the memory of `x` is counted."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        return cotangents[0] + 0.0, None


def _without_contents(model: nn.Module) -> None:
    """Replace the model's tensors, which are on the device "meta", by CPU tensors, because attention on "meta" would use another
    kernel. Inside `FakeTensorMode`, which the caller enters, these CPU tensors have no contents."""
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def twin(tensor: Tensor) -> Tensor:
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            setattr(module, name, made.setdefault(id(tensor), (tensor, twin(tensor)))[1])


def update_bytes(config: PreTrainedConfig, dtype: torch.dtype, arguments: TrainerArguments, lengths: tuple[int, int],
                 prepare: Callable[[PreTrainedModel], list[nn.Module]], *, lean: bool) -> int:
    """Return the most bytes that gradients and activations take at once in one process, if every row of a micro-batch has a
    gradient. `config`, `dtype`: the model's configuration and the type of its weights. `arguments`: TRL's arguments. `lengths`:
    the numbers of tokens of a prompt and of a completion. `prepare`: function that freezes those parameters of a model that are
    not trained, adds the LoRA if there is one, and returns the routed writers. `lean`: the value of `trainer.lean`; if it is
    false and there is no GPU, TRL's head also computes the logits of the prompts."""
    settings: Any = arguments
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        writers = prepare(model)
    with FakeTensorMode():
        _without_contents(model)
        add_fused_lm_head(model, temperature=0.5, outputs=("log_probs", "entropy"))
        for writer in writers:
            writer.register_forward_hook(lambda module, inputs, y: _Tapped.apply(y, inputs[0]))
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False} | (settings.gradient_checkpointing_kwargs or {}))
            model.enable_input_require_grads()
        rows, (prompt, completion) = settings.per_device_train_batch_size, lengths
        ids = torch.ones(rows, prompt + completion, dtype=torch.long)
        labels = ids.clone()
        labels[:, :prompt] = -100
        scored = torch.arange(rows).repeat_interleave(completion), torch.arange(prompt - 1, prompt + completion - 1).repeat(rows)
        with Alive() as alive:
            for parameter in model.parameters():
                alive.see(parameter)
                if parameter.requires_grad and settings.gradient_accumulation_steps > 1:
                    parameter.grad = torch.zeros_like(parameter)
            before = sum(parameter.untyped_storage().nbytes() for parameter in set(model.parameters()))
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(settings.bf16)):
                if lean or torch.cuda.is_available():
                    with changing_states(model, lambda states: states[scored].unsqueeze(0)):
                        found: Any = model.train()(input_ids=ids, attention_mask=torch.ones_like(ids), fused_lm_head=True,
                                                   shift_labels=labels[scored].unsqueeze(0))
                else:
                    found = model.train()(input_ids=ids, attention_mask=torch.ones_like(ids), fused_lm_head=True, labels=labels)
            found.log_probs.sum().backward()
    return alive.peak - before
