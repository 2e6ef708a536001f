"""Checks whether the engine serves the model that the trainer trains. It compares log-probabilities of fixed tokens, with the
quarantine on and off. Not covered: differences that show only in sequences longer than those compared."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from routed_rl.config import ParityConfig
from routed_rl.errors import ParityError
from routed_rl.model.stream import eval_mode
from routed_rl.rollout.served import Served

LIMITS = {"float32": 1e-3, "bfloat16": 0.5}
"""Default limits in nats, by the less precise dtype of the two sides: float32 agrees to 1e-4 on real models, and bfloat16 has 3
digits."""
RANDOM_TOKENS = 16
"""Number of random tokens after each prompt. Random tokens are unlikely, so all weights of the model influence their
probability."""


def fixed_sequences(prompts: list[list[int]], vocabulary: int, longest: int) -> list[list[int]]:
    """Each prompt followed by random tokens below `vocabulary`, which are the same in every run. If prompt and random tokens are
    more than `longest` tokens, the beginning of the prompt is left out."""
    generator = torch.Generator().manual_seed(0)
    tails = torch.randint(vocabulary, (len(prompts), RANDOM_TOKENS), generator=generator).tolist()
    return [(prompt[-(longest - RANDOM_TOKENS):] + tail)[:longest] for prompt, tail in zip(prompts, tails, strict=True)]


@torch.no_grad()
def trainer_logprobs(model: nn.Module, sequences: list[list[int]]) -> list[list[float]]:
    """The log-probabilities that `Engine.logprobs` returns, computed by the trainer's own model, which is in eval mode
    meanwhile."""
    device, rows = next(model.parameters()).device, []
    with eval_mode(model):
        for ids in sequences:
            ids_BT = torch.tensor([ids], device=device)
            logits = model(input_ids=ids_BT, use_cache=False).logits[0, :-1].float()
            rows.append(logits.log_softmax(-1).gather(-1, ids_BT[0, 1:, None]).squeeze(-1).tolist())
    return rows


class ParityCheck:
    """Compares the engine's log-probabilities with the trainer's when `run` is called. `is_due` returns True until the first call
    of `run`, and again `config.every` steps after the last call. `ablated` switches the trainer's quarantine off; None if the
    model has no quarantine."""

    def __init__(self, served: Served, model: nn.Module, sequences: list[list[int]], config: ParityConfig,
                 ablated: Callable[[], AbstractContextManager[None]] | None) -> None:
        self.served, self.model, self.sequences, self.config, self.ablated = served, model, sequences, config, ablated
        dtypes = {served.engine.dtype, str(next(model.parameters()).dtype).removeprefix("torch.")}
        self.limit = config.limit if config.limit is not None else max(LIMITS[dtype] for dtype in dtypes)
        self._last: int | None = None

    def is_due(self, step: int) -> bool:
        return self._last is None or (self.config.every > 0 and step - self._last >= self.config.every)

    def run(self, step: int) -> dict[str, float]:
        """Compare the engine's log-probabilities with the trainer's, of the policy and, if there is a quarantine, of the deployed
        model. Returns the largest difference for each as a metric. ParityError if one is above the limit."""
        self._last = step
        found = {"parity/policy": self._compare("policy", step)}
        if self.ablated is not None:
            with self.ablated():
                found["parity/deployed"] = self._compare("deployed", step)
            self.served.show(deployed=False)
        return found

    def _compare(self, name: str, step: int) -> float:
        engine = self.served.logprobs(self.sequences, deployed=name == "deployed")
        pairs = [(theirs, ours) for served, own in zip(engine, trainer_logprobs(self.model, self.sequences), strict=True)
                 for theirs, ours in zip(served, own, strict=True)]
        worst = max(pairs, key=lambda pair: math.inf if math.isnan(pair[0] - pair[1]) else abs(pair[0] - pair[1]))
        difference = abs(worst[0] - worst[1])
        if not difference <= self.limit:
            raise ParityError(
                f"rollouts and trainer are not the same model at step {step}: for one token of the {name} the engine has the "
                f"log-probability {worst[0]:.6f} and the trainer {worst[1]:.6f}, {difference:.2g} apart, rollout.parity.limit is "
                f"{self.limit:g}; the engine's weights or its arithmetic differ: check rollout.dtype={self.served.engine.dtype}, "
                "or raise the limit")
        return difference
