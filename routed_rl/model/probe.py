"""Traces how a model's layers write to the stream, by one forward pass on random tokens.

The graph of autograd is cut at every layer's input, behind every linear module and mixture of experts, and behind every norm
whose input is the output of one of them. A module writes to the stream if its layer's output still depends on the module's cut
output, and the derivative of the layer's output by the module's output shows how the module writes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from routed_rl.errors import ModelError
from routed_rl.model.traces import Cut, LayerTrace, Trace, is_mixture

ROWS, TOKENS = 2, 7


def trace(model: PreTrainedModel, layers: str, writers: list[str], *, training: bool) -> Trace:
    """Run one forward pass in which the autograd graph is cut behind modules, and return the record of the pass. `layers`: the
    name of the list of layers. `writers`: names of modules in a layer; if there are any, the graph is cut only behind these
    modules and the norms that read them. `training`: whether the model runs in training mode."""
    with _everything_trains(model):
        model.train(training)
        tracer = _Tracer(model, layers, writers)
        handles = tracer.hooks()
        try:
            logits = run(model).logits
        finally:
            for handle in handles:
                handle.remove()
        tracer.found.after = _reached(logits, tracer.outside)
    return tracer.found


def run(model: PreTrainedModel) -> Any:
    """Run a forward pass on a few random tokens, which are the same in every process, and return the model's output. Any error
    becomes a ModelError of one line."""
    rows = len(next(model.get_input_embeddings().parameters()))
    ids = torch.randint(min(2, rows - 1), rows, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0)).to(model.device)
    try:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except ModelError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"a forward on random tokens fails with {type(error).__name__}: {reason[:160]}") from error


@contextmanager
def _everything_trains(model: nn.Module) -> Iterator[None]:
    """Inside the block, every parameter of the model gets gradients. Afterwards the modules' modes, the random state and the
    frozen parameters are as before."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad and parameter.is_floating_point()]
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    modes = [(module, module.training) for module in model.modules()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes:
            module.training = training


def _reached(value: Tensor, parameters: dict[str, nn.Parameter]) -> list[str]:
    """Return the names of those `parameters` on which `value` depends, by its graph. To compute gradients instead would take as
    much memory for an embedding as the embedding itself."""
    seen, todo, leaves = set[Any](), [value.grad_fn], set[int]()
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaves.add(id(getattr(node, "variable", None)))
        todo += [each for each, _ in node.next_functions]
    return [name for name, parameter in parameters.items() if id(parameter) in leaves]


def _stream_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


class _Tracer:
    """Makes the hooks that trace one forward pass, and collects the trace in `found`."""

    def __init__(self, model: PreTrainedModel, layers: str, writers: list[str]) -> None:
        self.model, self.prefix, self.writers, self.found = model, layers, writers, Trace()
        self.layers = list(model.get_submodule(layers).children())
        self.outside = {name: parameter for name, parameter in model.named_parameters() if not name.startswith(f"{layers}.")}
        self.now: LayerTrace | None = None
        self.last: Tensor | None = None
        """The stream behind the layer that ran last. Behind the model's last layer it is a leaf of the graph."""

    def hooks(self) -> list[Any]:
        handles = []
        for layer in self.layers:
            for name, module in layer.named_modules():
                if name:
                    handles.append(module.register_forward_pre_hook(self._reading(name), with_kwargs=True))
                    handles.append(module.register_forward_hook(self._cutting(name), with_kwargs=True))
            handles.append(layer.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(layer.register_forward_hook(self._leave))
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        for name, module in self.model.named_modules():
            if id(module) not in inside and name and not self.prefix.startswith(name):
                handles.append(module.register_forward_pre_hook(self._after(name), with_kwargs=True))
        return handles

    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream = _stream_of(args, kwargs)
        if not isinstance(stream, Tensor) or stream.dim() != 3:
            raise ModelError("its layers are not given the stream as (rows, tokens, width) in their first argument")
        if self.last is None:
            self.found.before = _reached(stream, self.outside)
        elif stream.shape != self.last.shape or not stream.detach().equal(self.last):
            raise ModelError("a layer's input is not the output of the layer before it")
        leaf = stream.detach().clone().requires_grad_()
        self.now = LayerTrace(leaf)
        self.found.layers.append(self.now)
        return ((leaf.clone(), *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": leaf.clone()})

    def _reading(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream = _stream_of(args, kwargs)
            if self.now is not None and isinstance(stream, Tensor) and stream.shape == self.now.into_BTD.shape:
                self.now.reads.append((name, stream.detach()))

        return hook

    def _cutting(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            layer, inputs = self.now, (*args, *kwargs.values())
            if layer is None or not isinstance(output, Tensor) or output.shape[-1:] != layer.into_BTD.shape[-1:]:
                return None
            if (again := next((cut for cut in layer.cuts if cut.name == name), None)) is not None:
                again.calls += 1
            elif not self._is_candidate(name, module) and not (
                    "Norm" in type(module).__name__ and any(cut.is_read_by(inputs) for cut in layer.cuts)):
                return None
            leaf = output.detach().clone().requires_grad_()
            passed_on = leaf.clone()
            layer.cuts.append(Cut(name, module, inputs, leaf, passed_on))
            return passed_on

        return hook

    def _is_candidate(self, name: str, module: nn.Module) -> bool:
        return name in self.writers if self.writers else isinstance(module, nn.Linear | Conv1D) or is_mixture(module)

    def _leave(self, module: nn.Module, _args: object, output: Any) -> Any:
        layer = self.now
        assert layer is not None
        several = isinstance(output, tuple | list)
        out = output[0] if several else output
        if not isinstance(out, Tensor) or out.shape != layer.into_BTD.shape:
            raise ModelError("its layers do not return the stream first")
        if not out.requires_grad:
            raise ModelError("its layers run without gradients")
        layer.parameters = _reached(out, dict(module.named_parameters()))
        layer.returns, layer.towards_BTD = len(output) if several else 0, torch.randn_like(out)
        leaves = [layer.into_BTD, *(cut.output for cut in layer.cuts)]
        layer.gradient_BTD, *found = torch.autograd.grad(out, leaves, layer.towards_BTD, allow_unused=True)
        for cut, gradient in zip(layer.cuts, found, strict=True):
            cut.gradient = gradient
        self.now, self.last, layer.out_BTD = None, out.detach().clone(), out.detach()
        if len(self.found.layers) == len(self.layers):
            self.last.requires_grad_()
        return type(output)((self.last, *output[1:])) if several else self.last

    def _after(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream, last = _stream_of(args, kwargs), self.last
            if (last is not None and last.requires_grad and self.found.final_norm is None and isinstance(stream, Tensor)
                    and stream.data_ptr() == last.data_ptr()):
                self.found.final_norm = name

        return hook
