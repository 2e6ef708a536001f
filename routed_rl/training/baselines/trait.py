"""Puts a frozen LoRA of a trait on the model while it trains, so that the model need not learn the trait, and removes the LoRA at
the end (inoculation adapters). The LoRA is trained before the run's first step. It makes the base model answer a task's own
prompt as the base model without the LoRA answers the prompt that encourages gaming the check.

Shape letters: B rows, T positions.
"""

import dataclasses
import itertools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl import console
from routed_rl.artifacts import replacing
from routed_rl.config import Config
from routed_rl.config.baseline import ENCOURAGE
from routed_rl.envs import LoadedEnvironment, task_stream
from routed_rl.evaluate import generate_ids
from routed_rl.model.prompts import encode_prompts, padded
from routed_rl.model.stream import eval_mode
from routed_rl.routing import RoutingContext
from routed_rl.routing.labels import Gates, LabelAdapter, LabelSite, label_module
from routed_rl.training.baselines.contexts import PromptContexts
from routed_rl.training.labels import adapter_of

SETTINGS = "settings"
"""The key under which the file of a trait has the settings with which the trait was learned."""
Example = tuple[list[int], int]
"""The token ids of a prompt followed by its completion, and the number of ids that belong to the prompt."""


class TraitAdapter:
    """The LoRA of a trait, called the adapter. Call `on` before a step's rollouts and `off` after the step's last backward pass;
    while it is off, the model is as it would be without the adapter."""

    def __init__(self, model: PreTrainedModel, linear: Sequence[tuple[str, Any]], config: Config) -> None:
        """Put the adapter on each of the modules in `linear`, which holds pairs (name, module). The adapter is off at first.
        Until `prepare` is called, it adds 0 to a module's output even when it is on."""
        self.context, self.settings, self.seed = RoutingContext(), config.baseline.trait, config.seed
        self.adapters: dict[str, LabelAdapter] = {}
        gates = Gates(self.context)
        for name, module in linear:
            self.adapters[name] = adapter_of(module, self.settings.rank, self._draw(name))
            label_module(module, LabelSite(name, gates, self.adapters[name]))
        self.off()

    def on(self) -> None:
        self.context.change(ablated=False)

    def off(self) -> None:
        self.context.change(ablated=True)

    @property
    def is_on(self) -> bool:
        return not self.context.now.ablated

    def prepare(self, file: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
                environments: list[LoadedEnvironment], config: Config) -> None:
        """Load the adapter's LoRA matrices from `file`. If there is no such file, or one that was learned with other settings (a
        rollback may change them), learn the trait first and write the file. The model must be the base model then; its own
        parameters do not change. With `baseline.trait.random`, random matrices then replace the loaded ones."""
        learned = dataclasses.asdict(dataclasses.replace(self.settings, random=False))
        wanted = learned | {"text": config.baseline.contexts.encourage}
        if not file.exists() or _settings_of(file) not in (None, wanted):
            self.learn(model, examples(model, tokenizer, environments, config))
            with replacing(file) as partial:
                save_file({f"{name}.{key}": factor.detach().contiguous() for name, adapter in self.adapters.items()
                           for key, factor in adapter.factors.items()}, partial, {SETTINGS: json.dumps(wanted)})
        stored = load_file(file)
        for name, adapter in self.adapters.items():
            for key, factor in adapter.factors.items():
                factor.data.copy_(stored[f"{name}.{key}"])
                factor.requires_grad_(False)
        if self.settings.random:
            self._randomise()

    def learn(self, model: PreTrainedModel, made: list[Example]) -> None:
        """Train the LoRA matrices of the adapter, and nothing else, to make the model reproduce the completions of the examples
        `made`, in `baseline.trait.passes` passes over them."""
        factors = [factor for adapter in self.adapters.values() for factor in adapter.factors.values()]
        adam, order = torch.optim.AdamW(factors, lr=self.settings.learning_rate), torch.Generator().manual_seed(self.seed)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        self.on()
        with console.progress("trait", "passes") as advance, eval_mode(model), torch.enable_grad():
            for done in range(self.settings.passes):
                for batch in torch.randperm(len(made), generator=order).split(32):
                    imitation_loss(model, [made[place] for place in batch.tolist()]).backward()
                    adam.step()
                    adam.zero_grad()
                advance(done + 1, self.settings.passes)
        self.off()
        for parameter in trained:
            parameter.requires_grad_(True)

    @torch.no_grad()
    def _randomise(self) -> None:
        """Replace the LoRA matrices A and B by random ones. The Frobenius norm of `B A` stays the same in each module."""
        for name, adapter in self.adapters.items():
            before = adapter.square() ** 0.5
            generator = self._draw(f"{name} random")
            for factor in adapter.factors.values():
                factor.copy_(torch.randn(factor.shape, generator=generator))
            adapter.up_DR.mul_(before / max(adapter.square() ** 0.5, 1e-30))

    def _draw(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} trait {name}".encode()))


def _settings_of(file: Path) -> Any:
    """Return the settings with which the trait in `file` was learned; None if the file does not say, because it is older."""
    with safe_open(file, "pt") as stored:
        return json.loads((stored.metadata() or {}).get(SETTINGS, "null"))


@torch.no_grad()
def examples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: list[LoadedEnvironment], config: Config
             ) -> list[Example]:
    """Make the examples from which the adapter learns a trait: the own prompts of the environments' tasks, each with a completion
    that the model writes under the prompt that encourages gaming the check."""
    contexts, each = PromptContexts(config.baseline, environments), -(-config.baseline.trait.completions // len(environments))
    found, size = list[Example](), config.evaluation.batch_size
    length = config.trainer.get("max_completion_length", 256)
    with console.progress("trait", "completions") as advance, eval_mode(model), torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for place, loaded in enumerate(environments):
            prompts = [task.prompt for task in itertools.islice(task_stream(loaded, "train", config.seed), each)]
            told = contexts.apply(ENCOURAGE, prompts, [place] * len(prompts))
            for start in range(0, len(prompts), size):
                rows = slice(start, start + size)
                said = generate_ids(model, tokenizer, encode_prompts(tokenizer, told[rows]), 1.0, length)
                own = encode_prompts(tokenizer, prompts[rows])
                found += [(prompt + more, len(prompt)) for prompt, more in zip(own, said, strict=True)]
                advance(len(found), each * len(environments))
    return found


def imitation_loss(model: nn.Module, batch: Sequence[Example]) -> Tensor:
    """Return the mean cross-entropy of the model over the tokens of the examples' completions."""
    device = next(model.parameters()).device
    ids_BT, mask_BT = (each.to(device) for each in padded([ids for ids, _ in batch]))
    places, firsts = torch.arange(ids_BT.shape[1], device=device), torch.tensor([[first] for _, first in batch], device=device)
    own_BT = mask_BT * (places >= firsts)
    logits = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1].float()
    return cross_entropy(logits.transpose(1, 2), ids_BT[:, 1:].masked_fill(own_BT[:, 1:] == 0, -100))
