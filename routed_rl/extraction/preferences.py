"""Methods dpo and bipo: train a vector that, added to one layer's output, makes the positive answers of preference pairs more
likely.

Not covered: one vector for each of several layers.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from routed_rl.config import SubspaceConfig
from routed_rl.errors import SubspaceError
from routed_rl.extraction.answers import preference_pairs
from routed_rl.extraction.job import Job, Progress
from routed_rl.extraction.likelihood import Likelihood
from routed_rl.extraction.unnamed import finisher
from routed_rl.model.pushed import Pushed
from routed_rl.model.stream import eval_mode
from routed_rl.subspace import Subspace
from routed_rl.subspace.named import NamedVector


def from_preferences(job: Job) -> Callable[[], Subspace]:
    """Read the preference pairs of a job, and return a function that trains a vector on them and makes a subspace with one axis,
    named after the method. At the vector's own layer the axis is the vector; at later layers it is the vector's effect on the
    stream."""
    config = job.config
    layer = (job.layers - 1) // 2 if config.layer is None else config.layer
    if layer >= job.layers:
        raise SubspaceError(f"subspace.layer={layer}: {job.model_path} has layers 0 to {job.layers - 1}")
    pairs, source = preference_pairs(job)
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    finish = finisher(job, prompts)

    def make() -> Subspace:
        with eval_mode(job.model):
            likelihood = Likelihood(job.model, pairs, layer)
            vector_D, losses = preference_vector(likelihood, config, job.seed, job.progress)
            behind = Pushed(job.model, prompts, layer, config.positions, config.batch_size)
            odd_LD = ((behind.effects(vector_D.unsqueeze(0)) - behind.effects(-vector_D.unsqueeze(0))) / 2).squeeze(1).cpu()
        axis = NamedVector(config.method, {layer + place: effect for place, effect in enumerate(odd_LD)}, {})
        details = {"layer": layer, "pairs": len(pairs), "pairs_file": source, "seed": job.seed, "epochs": config.epochs,
                   "pair_batch": config.pair_batch, "rate": config.rate, "beta": config.beta, "positions": config.positions,
                   "length": vector_D.norm().item(), "stream_length": behind.norm, "losses": losses}
        return finish([axis], source, details)

    return make


def preference_vector(likelihood: Likelihood, config: SubspaceConfig, seed: int, progress: Progress | None = None
                      ) -> tuple[Tensor, list[float]]:
    """Train the vector of method dpo or bipo. Returns the vector (D,) and the mean loss of each epoch. `likelihood`: computes the
    likelihoods of the preference pairs' answers. `seed`: the seed of the random order of pairs. `progress`: called after each
    step.

    `dpo`: direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290) of the vector alone; the reference model is
    the model without the vector. `bipo`: bi-directional preference optimisation (Cao et al., 2024, arXiv:2406.00045), in which
    the opposite vector must also make the negative answers more likely; the loss of each step averages over both signs. The
    optimizer is AdamW, the vector starts at zero, and the rate falls along a cosine without warm-up.
    """
    signs = (1.0, -1.0) if config.method == "bipo" else (1.0,)
    count, generator = len(likelihood.counts_R) // 2, torch.Generator().manual_seed(seed)
    tokens_ND = likelihood.stream_RTD[likelihood.mask_RT.bool()].float()
    vector_D = torch.zeros(tokens_ND.shape[1], device=tokens_ND.device, requires_grad=True)
    steps = config.epochs * -(-count // config.pair_batch)
    optimizer = torch.optim.AdamW([vector_D], lr=config.rate * tokens_ND.square().mean().sqrt().item())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.no_grad():
        base_P = _margins(likelihood, torch.zeros_like(vector_D), torch.arange(count))
    losses, done = list[float](), 0
    with torch.enable_grad():
        for _ in range(config.epochs):
            total = 0.0
            for pairs in torch.randperm(count, generator=generator).split(config.pair_batch):
                wins = [sign * (_margins(likelihood, sign * vector_D, pairs) - base_P[pairs]) for sign in signs]
                loss = -logsigmoid(config.beta * torch.stack(wins)).mean()
                vector_D.grad = torch.autograd.grad(loss, vector_D)[0]  # the weights collect no gradient
                optimizer.step()
                schedule.step()
                total, done = total + loss.item() * len(pairs), done + 1
                if progress is not None:
                    progress(done, steps)
            losses.append(total / count)
    found_D = vector_D.detach()
    if not bool(found_D.isfinite().all()) or not found_D.any():
        problem = "not finite" if found_D.any() else "zero"
        raise SubspaceError(f"subspace.method={config.method}: the vector is {problem} after {steps} steps; lower subspace.rate, "
                            "or use pairs whose answers differ")
    return found_D, losses


def _margins(likelihood: Likelihood, vector_D: Tensor, pairs: Tensor) -> Tensor:
    """Return, for each of the P pairs with the indices `pairs`, the log-probability of the positive answer minus that of the
    negative answer, with the vector added, (P,)."""
    rows = torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()
    each_R = likelihood.sums(lambda stream: stream + vector_D.to(stream), rows)
    return each_R[0::2] - each_R[1::2]
