"""The causal check of a subspace's axes. A vector along an axis is added to the stream with either sign, and the stream's
component along the axis is removed. The same is done with random directions.

The check measures how much more likely reference answers of the positive persona become than those of the negative persona, in
nats per token. Not covered: vectors at several layers at once, and the answers that the model would write by itself.
"""

import math
from typing import Any

import torch
from torch import Tensor

from routed_rl.errors import SubspaceError
from routed_rl.extraction.answers import reference_answers
from routed_rl.extraction.job import OWN, Job, Progress
from routed_rl.extraction.likelihood import Likelihood, pushed
from routed_rl.extraction.responses import why_silent
from routed_rl.linalg import random_basis
from routed_rl.model.stream import eval_mode
from routed_rl.subspace import Subspace
from routed_rl.subspace.causes import Effects, judge
from routed_rl.subspace.separation import best_layer


def causal_check(job: Job, subspace: Subspace, progress: Progress | None = None) -> dict[str, Any]:
    """Make the causal check of a subspace's axes at one layer, and return plain JSON: the figures of `causes.judge`, the `layer`,
    the `length` of the vectors, the number of `answers` and their `source`; or {"missing": reason} if the check cannot be made.
    `progress`: called after each direction.

    The vectors along all axes and random directions have the same length: `subspace.check.strength` times the gap at the layer.
    """
    check = job.config.check
    answers, source = reference_answers(job, subspace.provenance.method)
    if not answers:
        silent = why_silent(job.model, job.tokenizer) if subspace.provenance.method in OWN else None
        why = silent or f"no reference answers are known for {job.model_path}; set "
        return {"missing": f"{why}subspace.answers=FILE.jsonl"}
    layer = _layer(job, subspace)
    place = layer - (subspace.provenance.hook == "resid_pre")
    columns = [column for column in range(len(subspace.axis_names)) if subspace.axes[layer][:, column].any()][: check.axes]
    if place < 0 or not columns:
        return {"missing": f"there is nothing to steer along at layer {layer}; set subspace.check.layer"}
    # There must be so many that the smallest possible p value survives the correction.
    draws = max(check.random, math.ceil(len(columns) / max(check.p, 1e-3)))
    drawn = random_basis(job.width, 1, torch.Generator().manual_seed(job.seed), draws=draws).squeeze(2)
    length = check.strength * subspace.units[layer].item()
    directions, effects = [*(subspace.axes[layer][:, column] for column in columns), *drawn], []
    with eval_mode(job.model), torch.no_grad():
        try:
            likelihood = Likelihood(job.model, answers, place)
        except SubspaceError as error:  # the subspace may be good all the same
            return {"missing": str(error)}
        base = likelihood.score(lambda stream: stream)
        for direction in directions:
            effects.append(_effects(likelihood, base, direction, length))
            if progress is not None:
                progress(len(effects), len(directions))
    names = [subspace.axis_names[column] for column in columns]
    return {"layer": layer, "length": length, "answers": len(answers), "source": source,
            **judge(names, effects[: len(names)], effects[len(names):])}


def _layer(job: Job, subspace: Subspace) -> int:
    if (layer := job.config.check.layer) is not None:
        if not 0 <= layer < job.layers:
            raise SubspaceError(f"subspace.check.layer={layer}: the model has layers 0 to {job.layers - 1}")
        return layer
    axes = subspace.quality.get("axes")
    if axes and (best := best_layer(axes, subspace.axis_names[0])) is not None:
        return best
    having = [layer for layer, axes in enumerate(subspace.axes) if axes[:, 0].any()]
    return having[len(having) // 2] if having else 0


def _effects(likelihood: Likelihood, base: float, direction: Tensor, length: float) -> Effects:
    more, less = (likelihood.score(pushed(direction, by)) - base for by in (length, -length))

    def without(stream: Tensor) -> Tensor:
        return stream - (stream @ direction.to(stream)).unsqueeze(-1) * direction.to(stream)

    return Effects(more, less, likelihood.score(without) - base)
