"""Chooses which of many unnamed directions, called factors, become axes, and with which sign: by another subspace
(`subspace.target`), by answers, or by the environments.

Shape letters: L layers (the factors' own layer and all later ones), F factors, D stream width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from routed_rl.artifacts.whole import sha256
from routed_rl.config import DegradeConfig
from routed_rl.errors import SubspaceError
from routed_rl.extraction.answers import preference_pairs
from routed_rl.extraction.job import Job
from routed_rl.extraction.likelihood import Likelihood, pushed
from routed_rl.model.stream import changing_output
from routed_rl.model.targets import decoder_layers
from routed_rl.subspace import Subspace
from routed_rl.subspace.factors import most_captured

Prepare = Callable[[Job], Callable[[], Subspace]]


@dataclass(frozen=True, eq=False)
class Factors:
    """The directions that method dct has found, and how the stream changes at later layers when a vector along each direction is
    added to it."""

    directions_FD: Tensor
    """The factors as unit vectors at the output of layer `source`."""
    effects_LFD: Tensor
    """How the output of layer `source`, and of each later layer, changes when a vector of length `radius` along each direction is
    added to the output of layer `source`."""
    source: int
    radius: float


@dataclass(frozen=True)
class Chosen:
    """A choice among the factors, which are the directions that method dct has found. `factors` has the indices of the chosen
    factors, the best first. `signs` has, for each of them, the sign (1 or -1) with which it points towards the positive persona.
    `grounds`: facts about how they were chosen, for the provenance."""

    factors: list[int]
    signs: list[float]
    scores: list[float]
    """The score of every factor, chosen or not. The sign of a chosen factor is that of its score."""
    grounds: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the choice as fields for the details of the subspace's provenance."""
        return {"chosen": self.factors, "signs": self.signs, "scores": self.scores, **self.grounds}


Choose = Callable[[Factors], Chosen]


def by_target(job: Job, prepare: Prepare) -> Choose:
    """Return a function that chooses factors by the first axis of another subspace, `subspace.target`. Factors are added one
    after another, each time the factor that makes the span of the chosen factors' effects hold the most of that axis. The score
    of a factor is the cosine between its effect and that axis, as a mean over layers. `prepare`: makes the other subspace if
    `subspace.target` is mean_difference instead of a folder."""
    target, path = job.config.target, Path(job.config.target).expanduser()
    if target == "mean_difference":
        if job.pairs is None and job.config.prompts_for(job.model_path) is None:
            raise SubspaceError("subspace.target=mean_difference needs contrast prompts, and none are known for "
                                f"{job.model_path}; set subspace.prompts=FILE.jsonl, subspace.target=FOLDER, or "
                                "subspace.choose=environments")
        make = prepare(replace(job, progress=None).changed(method=target, rank=1, degrade=DegradeConfig()))
        grounds: dict[str, Any] = {"target": target}
    else:
        there = Subspace.load(path)
        there.check_model(model=job.model_path, model_hash=job.model_hash, width=job.width, layers=job.layers)
        if (hook := there.provenance.hook) != "resid_post":
            raise SubspaceError(f"subspace.target={target} was read at {hook}, and method dct pushes the outputs of layers; "
                                "extract it with subspace.hook=resid_post")
        grounds = {"target": target, "target_hash": sha256(path / "subspace.safetensors"),
                   "target_method": there.provenance.method}

        def make() -> Subspace:
            return there

    def choose(found: Factors) -> Chosen:
        subspace = make()
        axis_LD = torch.stack([axes[:, 0] for axes in subspace.axes])[found.source:].float()
        if not axis_LD.any():
            raise SubspaceError(f"subspace.target={target} has no axis at layer {found.source} or later; lower subspace.source")
        cosines = torch.einsum("lfd,ld->lf", normalize(found.effects_LFD, dim=2), normalize(axis_LD, dim=1))
        scores = cosines[axis_LD.any(dim=1)].mean(0).tolist()
        factors, shares = most_captured(found.effects_LFD, axis_LD, job.config.keep)
        grounds.update(target_axis=subspace.axis_names[0], captured=shares)
        return Chosen(factors, _signs(factors, scores), scores, grounds)

    return choose


def by_answers(job: Job, _prepare: Prepare) -> Choose:
    """Return a function that chooses, among the directions ("factors") that a method without labels has found, those with the
    largest effect on preference pairs. A factor's score is half the change of the log-likelihood of positive answers over that
    of negative answers, in nats per token, when a vector along the factor is added to the stream in place of its opposite."""
    pairs, source = preference_pairs(job)

    def choose(found: Factors) -> Chosen:
        likelihood = Likelihood(job.model, pairs, found.source)
        with torch.no_grad():
            scores = _screened(job, found, lambda direction, length: likelihood.score(pushed(direction, length)))
        return _strongest(scores, job.config.keep, {"pairs_file": source, "pairs": len(pairs), "pairs_hash": job.hash_of(source)})

    return choose


def by_environments(job: Job, _prepare: Prepare) -> Choose:
    """Return a function that chooses, among the directions ("factors") that a method without labels has found, those with the
    largest effect on behaviour. A factor's score is half the change of the share of completions that the environments flag, when
    a vector along the factor is added to the stream in place of its opposite."""
    behave = job.behave
    if behave is None:
        raise SubspaceError("subspace.choose=environments needs environments that flag something, and there are none here; set "
                            "subspace.choose=answers or subspace.choose=target")

    def choose(found: Factors) -> Chosen:
        def flagged(direction_D: Tensor, length: float) -> float:
            with pushing(job.model, found.source, length * direction_D):
                return behave()

        return _strongest(_screened(job, found, flagged), job.config.keep, {"screen_samples": job.config.screen_samples})

    return choose


CHOOSERS: dict[str, Callable[[Job, Prepare], Choose]] = {
    "target": by_target, "answers": by_answers, "environments": by_environments}


@contextmanager
def pushing(model: PreTrainedModel, layer: int, push_D: Tensor) -> Iterator[None]:
    """Inside the block, the vector `push_D` is added to the output of a layer at every token of prompts and completions."""
    handle = changing_output(decoder_layers(model)[layer], lambda stream: stream + push_D.to(stream))
    try:
        yield
    finally:
        handle.remove()


def _screened(job: Job, found: Factors, score: Callable[[Tensor, float], float]) -> list[float]:
    scores, total = list[float](), len(found.directions_FD)
    for direction in found.directions_FD:
        scores.append((score(direction, found.radius) - score(direction, -found.radius)) / 2)
        if job.progress is not None:
            job.progress(len(scores), total)
    return scores


def _strongest(scores: list[float], keep: int, grounds: dict[str, Any]) -> Chosen:
    """Choose the `keep` factors with the largest absolute scores. SubspaceError if all scores are 0. `grounds`: the field
    `grounds` of the returned choice."""
    if not any(scores):
        raise SubspaceError("no push along any factor changes what it is chosen by (answers, or flags of environments); set a "
                            "larger subspace.radius, or another subspace.choose")
    factors = sorted(range(len(scores)), key=lambda factor: -abs(scores[factor]))[:keep]
    return Chosen(factors, _signs(factors, scores), scores, grounds)


def _signs(factors: list[int], scores: list[float]) -> list[float]:
    return [-1.0 if scores[factor] < 0 else 1.0 for factor in factors]
