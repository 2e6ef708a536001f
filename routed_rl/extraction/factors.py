"""Method dct: finds directions at one layer, called factors, to which later layers respond most, on ordinary prompts and without
labels.

Factors have no names; the module `choose` chooses some of them as axes and records on which grounds. Not covered: factors of
single prompts. Shape letters: L layers (the factors' own layer and all later ones), F factors, D stream width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from routed_rl.errors import SubspaceError
from routed_rl.extraction.answers import pairs_prompts
from routed_rl.extraction.choose import CHOOSERS, Factors, Prepare
from routed_rl.extraction.contrast import prompt_ids, read_lines, read_prompts
from routed_rl.extraction.job import Job
from routed_rl.extraction.unnamed import Sequences, finisher
from routed_rl.model.pushed import Pushed, eager_attention
from routed_rl.model.stream import eval_mode
from routed_rl.subspace import Subspace
from routed_rl.subspace.factors import DRAWS, calibrated_radius, exponential_factors, linear_factors
from routed_rl.subspace.named import NamedVector

LINEAR_PUSH = 0.25
"""The length of the vector that is added along a factor if `subspace.form=linear` and `subspace.radius` is not set, as a share of
the mean length of the stream."""


def from_factors(job: Job, prepare: Prepare) -> Callable[[], Subspace]:
    """Read the inputs of method dct and return a function that makes the subspace. Its axes are named "dct_K", where K is the
    number of the factor. `prepare`: if `subspace.choose=target`, it makes the other subspace by which factors are chosen."""
    config = job.config
    source, until = _layers(job)
    if config.factors > job.width:
        raise SubspaceError(f"subspace.factors={config.factors} is more than the width {job.width} of the stream of "
                            f"{job.model_path}; lower subspace.factors")
    plain, file = _plain_prompts(job)
    choose, finish = CHOOSERS[config.choose](job, prepare), finisher(job, plain)

    def make() -> Subspace:
        with eval_mode(job.model), eager_attention(job.model):
            factors, details = _factors(job, plain, source, until)
            chosen = choose(factors)
        vectors = [_axis(factors, factor, sign) for factor, sign in zip(chosen.factors, chosen.signs, strict=True)]
        return finish(vectors, file, {**details, "source": source, "until": until, "plain": len(plain), "seed": job.seed,
                                      "positions": config.positions, "chosen_by": config.choose, **chosen.record()})

    return make


def _axis(factors: Factors, factor: int, sign: float) -> NamedVector:
    """Make the axis of one factor. At each layer it is the vector by which the factor changes the stream there, times `sign`. A
    shift of 1 along the axis has the length of that vector."""
    effects = dict(enumerate(factors.effects_LFD[:, factor], start=factors.source))
    return NamedVector(f"dct_{factor}", {layer: sign * effect for layer, effect in effects.items()},
                       {layer: effect.norm().item() for layer, effect in effects.items()})


def _factors(job: Job, plain: Sequences, source: int, until: int) -> tuple[Factors, dict[str, Any]]:
    config, generator = job.config, torch.Generator().manual_seed(job.seed)
    pushed = Pushed(job.model, plain, source, config.positions, config.batch_size)

    def respond(pushes_FD: Tensor) -> Tensor:
        return pushed.response(pushes_FD, until)

    def drawn(count: int) -> Tensor:
        return normalize(torch.randn(count, job.width, generator=generator), dim=1).to(job.model.device)

    start_FD, strengths = drawn(config.factors), None
    if config.form == "linear":
        radius = LINEAR_PUSH * pushed.norm if config.radius is None else config.radius
        found_FD, strengths = linear_factors(respond, start_FD, config.iterations, pushed.chunks, job.progress)
    else:
        radius = config.radius or calibrated_radius(respond, drawn(DRAWS), pushed.norm, config.nonlinearity, pushed.chunks)
        found_FD = exponential_factors(respond, start_FD, radius, config.iterations, pushed.chunks, job.progress)
    # What does not depend on the sign of a push cancels, so that an axis may be turned around.
    effects_LFD = (pushed.effects(radius * found_FD) - pushed.effects(-radius * found_FD)) / 2
    if not effects_LFD[0].any(dim=1).all():  # in the numbers of the model, the push is lost in rounding
        raise SubspaceError(f"subspace.radius={radius:g} is too short: a push of that length does not change a stream of length "
                            f"{pushed.norm:.3g}; raise it, or leave it out")
    details = {"form": config.form, "factors": config.factors, "iterations": config.iterations, "radius": radius,
               "stream_length": pushed.norm, "calibrated": config.form == "exponential" and config.radius is None,
               "nonlinearity": config.nonlinearity, "strengths": None if strengths is None else strengths.tolist()}
    return Factors(found_FD, effects_LFD.cpu(), source, radius), details


def _layers(job: Job) -> tuple[int, int]:
    """Return the layer to whose output vectors are added, and the layer at which the response is measured."""
    config, last = job.config, job.layers - 1
    source = last // 4 if config.source is None else config.source
    until = max(last - job.layers // 4, source + 1) if config.until is None else config.until
    if not source < until <= last:
        raise SubspaceError(f"subspace.source={source} must lie before subspace.until={until}, and {job.model_path} has "
                            f"layers 0 to {last}; set both to layers of the model")
    return source, until


def _plain_prompts(job: Job) -> tuple[Sequences, str]:
    """Return the token ids of ordinary prompts, and the file from which they come ("" if they were given in memory). At most
    `subspace.plain` different prompts are taken, at even distances in the file."""
    config, contrast = job.config, job.config.prompts_for(job.model_path)
    if config.plain_prompts:
        file, what = config.plain_prompts, "plain prompts file"
        lines = read_lines(file, what, "subspace.plain_prompts", prompts=("prompt",))
        every = [prompt_ids(job.tokenizer, record["prompt"], job.model, f"{what} {file}, line {line}") for line, record in lines]
    elif (of_pairs := pairs_prompts(job))[0]:
        every, file = of_pairs
    elif contrast is not None or job.pairs is not None:
        given, file = (list(job.pairs), "") if job.pairs is not None else (read_prompts(contrast or ""), contrast or "")
        every = [prompt_ids(job.tokenizer, pair.negative, job.model, f"contrast prompts, line {pair.line}") for pair in given]
    else:
        raise SubspaceError(f"subspace.method=dct needs ordinary prompts, and none are known for {job.model_path}; set "
                            "subspace.plain_prompts=FILE.jsonl, {\"prompt\": ...} a line")
    every = list(dict.fromkeys(every))
    return every[:: -(-len(every) // config.plain)], file
