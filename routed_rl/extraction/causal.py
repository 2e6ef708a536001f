"""The causal check of an axis: push the stream along it, both ways, and remove it; do the same with random directions.

It measures how much more likely the positive persona's reference answers become than the negative one's, in nats per token,
teacher-forced. Not covered: pushing at several layers at once, and the answers that the model would write by itself.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.errors import SubspaceError
from routed_rl.extraction.answers import Answers, reference_answers
from routed_rl.extraction.job import Job, Progress
from routed_rl.linalg import random_basis
from routed_rl.model.prompts import padded
from routed_rl.model.stream import eval_mode, reading, resuming
from routed_rl.subspace import Subspace
from routed_rl.subspace.causes import Effects, judge
from routed_rl.subspace.separation import best_layer

Change = Callable[[Tensor], Tensor]
"""Function from the output of a layer (B, T, D) to the changed output."""


def causal_check(job: Job, subspace: Subspace, progress: Progress | None = None) -> dict[str, Any]:
    """Plain JSON: the figures of `judge` with `layer`, `length`, `answers` and `source`; {"missing": why} where the check cannot
    be made.

    Every axis and every random direction is pushed by the same length, `check.strength` times the layer's unit.
    """
    check = job.config.check
    answers, source = reference_answers(job, subspace.provenance.method)
    if not answers:
        return {"missing": f"no reference answers are known for {job.model_path}; set subspace.answers=FILE.jsonl"}
    layer = _layer(job, subspace)
    place = layer - (subspace.provenance.details.get("hook") == "resid_pre")
    columns = [column for column in range(len(subspace.axis_names)) if subspace.axes[layer][:, column].any()][: check.axes]
    if place < 0 or not columns:
        return {"missing": f"there is nothing to steer along at layer {layer}; set subspace.check.layer"}
    # There must be so many that the smallest possible p value survives the correction.
    draws = max(check.random, math.ceil(len(columns) / max(check.p, 1e-3)))
    drawn = random_basis(job.width, 1, torch.Generator().manual_seed(job.seed), draws=draws).squeeze(2)
    length = check.strength * subspace.units[layer].item()
    directions, effects = [*(subspace.axes[layer][:, column] for column in columns), *drawn], []
    with eval_mode(job.model), torch.no_grad():
        score = _scorer(job.model, answers, place)
        base = score(lambda stream: stream)
        for direction in directions:
            effects.append(_effects(score, base, direction, length))
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


def _effects(score: Callable[[Change], float], base: float, direction: Tensor, length: float) -> Effects:
    more, less = (score(lambda stream, by=by: stream + by * direction.to(stream)) - base for by in (length, -length))
    ablated = score(lambda stream: stream - (stream @ direction.to(stream)).unsqueeze(-1) * direction.to(stream)) - base
    return Effects(more, less, ablated)


def _scorer(model: PreTrainedModel, answers: list[Answers], layer: int) -> Callable[[Change], float]:
    """A function from a change of the output of `layer` to the score of the answers: the mean over answers of the mean
    log-probability of their tokens, positive minus negative. Layers up to `layer` are run only once."""
    rows = [(pair.prompt, side, sign) for pair in answers for side, sign in ((pair.positive, 1.0), (pair.negative, -1.0))]
    ids_BT, mask_BT = padded([prompt + side for prompt, side, _ in rows])
    weight_BT = torch.zeros(ids_BT.shape)  # the weight of the token after each position
    for row, (prompt, side, sign) in enumerate(rows):
        weight_BT[row, len(prompt) - 1:len(prompt) + len(side) - 1] = sign / len(side) / len(answers)
    where, text, unembed = weight_BT != 0, model.config.get_text_config(), model.get_output_embeddings()
    assert unembed is not None

    def forward() -> Tensor:
        return model.base_model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device),
                                use_cache=False).last_hidden_state

    kept: list[Tensor] = []
    with reading(model, lambda stream: kept.append(stream if len(kept) == layer else stream[:0])):
        forward()

    def score(change: Change) -> float:
        with resuming(model, layer, change(kept[layer])):
            hidden = forward()
        logits = unembed(hidden[where.to(hidden.device)]).float()
        if cap := getattr(text, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        following = ids_BT.roll(-1, dims=1)[where].to(logits.device)
        chosen = logits.log_softmax(-1).gather(-1, following.unsqueeze(-1)).squeeze(-1).cpu()
        return (chosen.double() @ weight_BT[where].double()).item()

    return score
