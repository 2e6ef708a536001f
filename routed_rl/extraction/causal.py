"""Does an axis do anything? Push the stream along it, both ways, and take it out; and the same with random directions.

What is measured: how much more likely the positive persona's reference answers become than the negative one's, in nats per
token, teacher-forced. Not covered: pushing at several layers at once, and what the model would say by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.errors import SubspaceError
from routed_rl.extraction.activations import Progress, evaluating
from routed_rl.extraction.answers import Answers, reference_answers
from routed_rl.extraction.job import Job
from routed_rl.linalg import random_basis
from routed_rl.model.stream import reading, resuming
from routed_rl.subspace import Subspace
from routed_rl.subspace.causes import Effects, judge
from routed_rl.subspace.separation import best_layer


@dataclass(frozen=True, eq=False)
class _Batch:
    """All answers of both personas, padded on the right."""

    ids_BT: Tensor
    mask_BT: Tensor
    weight_BT: Tensor
    """Of each position's next token: so that the score is a mean over answers of the mean over tokens, positive minus
    negative."""


def causal_check(job: Job, subspace: Subspace, progress: Progress | None = None) -> dict[str, Any]:
    """Plain JSON, the figures of `judge` with `layer`, `length` and `answers`; {"missing": why} where it cannot be made.

    The same length, `check.strength` times the layer's unit, for every axis and every random direction.
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
    # So many that the smallest p value there is survives the correction.
    draws = max(check.random, math.ceil(len(columns) / max(check.p, 1e-3)))
    drawn = random_basis(job.width, 1, torch.Generator().manual_seed(job.seed), draws=draws).squeeze(2)
    length = check.strength * subspace.units[layer].item()
    with evaluating(job.model), _scoring(job.model, _batch(answers), place) as score:
        real = [subspace.axes[layer][:, column] for column in columns]
        effects = _effects(score, [*real, *drawn], length, progress)
    names = [subspace.axis_names[column] for column in columns]
    return {"layer": layer, "length": length, "answers": len(answers), "source": source,
            **judge(names, effects[: len(names)], effects[len(names):])}


def _effects(score: Callable[[Callable[[Tensor], Tensor] | None], float], directions: Sequence[Tensor], length: float,
             progress: Progress | None) -> list[Effects]:
    base, found = score(None), []
    for done, direction in enumerate(directions, start=1):
        def push(stream: Tensor, by: float, along: Tensor = direction) -> Tensor:
            return stream + by * along.to(stream)

        def ablate(stream: Tensor, along: Tensor = direction) -> Tensor:
            return stream - (stream @ along.to(stream)).unsqueeze(-1) * along.to(stream)

        more, less = (score(lambda stream, by=by, push=push: push(stream, by)) - base for by in (length, -length))
        found.append(Effects(more, less, score(ablate) - base))
        if progress is not None:
            progress(done, len(directions))
    return found


def _layer(job: Job, subspace: Subspace) -> int:
    if (layer := job.config.check.layer) is not None:
        if not 0 <= layer < job.layers:
            raise SubspaceError(f"subspace.check.layer={layer}: the model has layers 0 to {job.layers - 1}")
        return layer
    first = subspace.axis_names[0]
    best = best_layer(subspace.quality["axes"], first) if "axes" in subspace.quality else None
    if best is not None:
        return best
    having = [layer for layer, axes in enumerate(subspace.axes) if axes[:, 0].any()]
    return having[len(having) // 2] if having else 0


class _scoring:
    """Yield `score(change)`: the answers' score with the output of `layer` changed; layers up to it are run once."""

    def __init__(self, model: PreTrainedModel, batch: _Batch, layer: int) -> None:
        self.model, self.batch, self.layer = model, batch, layer

    def __enter__(self) -> Callable[[Callable[[Tensor], Tensor] | None], float]:
        kept: list[Tensor] = []
        with reading(self.model, lambda stream: kept.append(stream) if len(kept) == self.layer else kept.append(stream[:0])):
            self._forward()
        self.stream = kept[self.layer]
        return self._score

    def __exit__(self, *_: object) -> None:
        del self.stream

    def _score(self, change: Callable[[Tensor], Tensor] | None) -> float:
        stream = self.stream if change is None else change(self.stream)
        with resuming(self.model, self.layer, stream):
            hidden = self._forward()
        where = self.batch.weight_BT != 0
        unembed = self.model.get_output_embeddings()
        assert unembed is not None
        logits = unembed(hidden[where.to(hidden.device)]).float()
        if cap := getattr(self.model.config.get_text_config(), "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        following = self.batch.ids_BT.roll(-1, dims=1)[where].to(logits.device)
        chosen = logits.log_softmax(-1).gather(-1, following.unsqueeze(-1)).squeeze(-1).cpu()
        return (chosen.double() @ self.batch.weight_BT[where].double()).item()

    def _forward(self) -> Tensor:
        device = self.model.device
        return self.model.base_model(input_ids=self.batch.ids_BT.to(device), attention_mask=self.batch.mask_BT.to(device),
                                     use_cache=False).last_hidden_state


def _batch(answers: list[Answers]) -> _Batch:
    rows = [(pair.prompt, side, sign) for pair in answers for side, sign in ((pair.positive, 1.0), (pair.negative, -1.0))]
    longest = max(len(prompt) + len(side) for prompt, side, _ in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    weight = torch.zeros(len(rows), longest)
    for row, (prompt, side, sign) in enumerate(rows):
        end = len(prompt) + len(side)
        ids[row, :end] = torch.tensor(prompt + side)
        mask[row, :end] = 1
        weight[row, len(prompt) - 1:end - 1] = sign / len(side) / len(answers)
    return _Batch(ids, mask, weight)
