"""Estimates the device memory that a run occupies all the time, line by line with the arithmetic. `moments` estimates the memory
that is occupied only for a while in each step."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from routed_rl.config import LABELS, Config
from routed_rl.model.fourbit import scales
from routed_rl.model.targets import Writer
from routed_rl.pipeline.build import Parts
from routed_rl.routing import shape_of
from routed_rl.training.checks import default
from routed_rl.training.labels import linear_modules

FLOAT = 4
"""Bytes of a float32 number. Only weights that are frozen may take fewer."""
STATES = {"adam": 2, "sgd": 0, "rmsprop": 1, "adagrad": 1, "adafactor": 0}
"""How many numbers an optimizer keeps for each weight, by the beginning of the optimizer's name; 2 for optimizers that are not
listed."""
PACKED = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bit: the weight itself, and its share of the scales that a block of weights has in common."""
CUT = {"weights": ("zero3", "fsdp2"), "gradients": ("zero2", "zero3", "fsdp2"), "optimizer": ("zero1", "zero2", "zero3", "fsdp2")}
"""For each kind of memory, the strategies under which a process holds only its shard of it."""


@dataclass(frozen=True)
class Need:
    """One line of the estimate: what the memory is for, its bytes, and in `how` the arithmetic behind them."""

    name: str
    bytes: float
    how: str


def needs(parts: Parts) -> list[Need]:
    """The lines of the estimate for the memory that one process occupies all the time, and for its gradients, which occupy memory
    only during the update."""
    config, world = parts.config, parts.config.launch.world
    held = trained_by_adapter(parts) if parts.adapted is not None else parts.model.num_parameters()
    states, (weights, how) = _states(config), _weights(parts)

    def share(name: str, kind: str, count: float, how: str) -> Need:
        cut = world > 1 and config.launch.strategy in CUT[kind]
        return Need(name, count // world if cut else count, f"({how}) / {world} processes" if cut else how)

    found = [share("weights", "weights", weights, how)]
    if config.reads_base and parts.adapted is None:
        found.append(Need("base model", weights, f"a frozen copy: {how}"))
    if parts.adapted is not None:
        found.append(share("adapter", "weights", held * FLOAT, f"{amount(held)} x {FLOAT}"))
    found += [share("gradients", "gradients", held * FLOAT, f"{amount(held)} x {FLOAT}"),
              share("optimizer", "optimizer", states * held * FLOAT, f"{states} x {amount(held)} x {FLOAT}")]
    if config.routing.mode == LABELS:
        return [*found, _labels(parts)]
    return found + (_routing(parts) if config.routing.by_subspace else [])


def _states(config: Config) -> int:
    optimizer = config.trainer.get("optim", default(config.trainer, "optim"))
    states = next((count for name, count in STATES.items() if str(optimizer).startswith(name)), 2)
    return states + config.launch.strategy.startswith("zero")  # DeepSpeed steps a copy of the weights


def trained_by_adapter(parts: Parts) -> int:
    return sum(parameter.numel() for parameter in parts.model.parameters() if parameter.requires_grad)


def _weights(parts: Parts) -> tuple[float, str]:
    """The bytes of the model itself, and a text with the number of weights for each size in bytes."""
    unpacked = parts.model.get_output_embeddings()
    linear = {id(module.weight) for module in parts.model.modules() if isinstance(module, nn.Linear) and module is not unpacked}
    sizes: dict[str, list[float]] = {}
    for name, parameter in parts.model.named_parameters():
        if parts.adapted is not None and ".lora_" in name:
            continue
        count = shape_of(parameter).numel()
        if held := scales(parameter):
            kind, size = "4 bit", parameter.nbytes + sum(tensor.nbytes for tensor in held)
        elif parameter.is_meta and parts.config.model.adapter.four_bit and id(parameter) in linear:
            kind, size = "4 bit", count * PACKED
        else:
            kind, size = str(parameter.dtype).removeprefix("torch."), count * parameter.element_size()
        old = sizes.get(kind, [0, 0.0])
        sizes[kind] = [old[0] + count, old[1] + size]
    how = " + ".join(f"{amount(count)} x {size / count:.3g} ({kind})" for kind, (count, size) in sizes.items())
    return sum(size for _, size in sizes.values()), how


def _labels(parts: Parts) -> Need:
    """The line about the quarantine of a run in mode `labels`: its adapters, their gradients and two moments."""
    sizes = [sum(shape_of(module.weight)) for _, module in linear_modules(parts.model)]
    count = parts.config.routing.labels.rank * sum(sizes)
    return Need("quarantine", 4 * count * FLOAT, f"(adapters, gradients, 2 moments) x {amount(count)} x {FLOAT}")


def _routing(parts: Parts) -> list[Need]:
    """The lines about routing: the quarantine (parts, their moments, coefficients and `R`), the ledgers and sampled inputs of a
    step's backward pass, and the bases of the random control."""
    settings, environments, ranks = parts.config.routing, len(parts.trained), [_rank(parts, each) for each in parts.writers]
    inputs = [_shape(writer)[1] for writer in parts.writers]
    entries, width = sum(map(int.__mul__, ranks, inputs)), parts.model.config.get_text_config().hidden_size
    each, tokens = f"{amount(entries)} coefficients x {FLOAT}", settings.quarantine.sample_tokens
    found = [Need("quarantine", (2 * environments + 2) * entries * FLOAT, f"(2 x {environments} environments + 2) x {each}"),
             Need("ledgers", environments * entries * FLOAT, f"{environments} environments x {each}"),
             Need("inputs", sum(inputs) * tokens * FLOAT, f"{tokens} sampled tokens x {amount(sum(inputs))} x {FLOAT}")]
    if (control := settings.random_control).every:
        bases = (1 + control.draws) * sum(ranks) * width
        found.append(Need("control", bases * FLOAT, f"{control.draws} random bases and the own, {amount(bases)} x {FLOAT}"))
    return found


def _rank(parts: Parts, writer: Writer) -> int:
    """The largest rank that a writer's basis may have. With layout=spanning the basis also spans the directions of all later
    layers."""
    settings, model = parts.config.subspace, parts.model.config.get_text_config()
    layers = model.num_hidden_layers - writer.layer if settings.layout == "spanning" else 1
    return min(model.hidden_size, (settings.rank or 8) * layers)


def _shape(writer: Writer) -> tuple[int, ...]:
    """The shape (D, N) of a writer's weight."""
    module: Any = writer.module
    shape = shape_of(module.weight) if writer.expert is None else module.down_proj[writer.expert].shape
    return tuple(shape[::-1] if writer.transposed else shape)


def amount(count: float) -> str:
    """A count in short form: 8.19 G, 87.3 M, 960."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"


def readable(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
