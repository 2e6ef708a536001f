"""The common part of the methods whose axes are not fitted to contrast prompts (dct, dpo, bipo): gives axes their scales, makes
the subspace, and measures its quality on contrast prompts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from routed_rl.extraction.activations import gather
from routed_rl.extraction.contrast import TokenPair
from routed_rl.extraction.given import ACTIVATIONS, PROMPTS, from_vectors, ordinary_stream
from routed_rl.extraction.job import Job
from routed_rl.subspace import Subspace, measure_quality
from routed_rl.subspace.named import NamedVector
from routed_rl.subspace.samples import Reservoir

Sequences = Sequence[tuple[int, ...]]
Finish = Callable[[Sequence[NamedVector], str, dict[str, Any]], Subspace]
"""Function that makes a subspace. Its arguments are the axes, the file from which they come, and details for the provenance."""


def finisher(job: Job, plain: Sequences) -> Finish:
    """Read the contrast prompts of the model, if there are any, and return a function that makes a subspace from axes.

    An axis without a scale gets the stream's standard deviation along it, over the contrast prompts or, if there are none, over
    the ordinary prompts `plain` (token ids). If there are contrast prompts, the subspace's quality says how well each axis tells
    the personas apart, and how much of the personas' differences lies inside the bases.
    """
    job = replace(job, progress=None)
    contrasted = job.pairs is not None or job.config.prompts_for(job.model_path) is not None
    gathered, ordinary = ordinary_stream(job) if contrasted else (_stream_of(job, plain), "")

    def finish(vectors: Sequence[NamedVector], source: str, details: dict[str, Any]) -> Subspace:
        reservoir = gathered()
        made = from_vectors(replace(job, axes=contrasted), list(vectors), reservoir, source, {**details, "prompts": ordinary})
        return replace(made, quality=_quality(job, made, reservoir)) if contrasted else made

    return finish


def _stream_of(job: Job, plain: Sequences) -> Callable[[], Reservoir]:
    some = plain[:: -(-len(plain) // PROMPTS)]
    pairs = [TokenPair(ids, ids, min(len(ids), job.config.positions), place, None) for place, ids in enumerate(some)]
    return partial(gather, job.changed(tokens="prompt_end"), pairs, sample=ACTIVATIONS)


def _quality(job: Job, made: Subspace, reservoir: Reservoir) -> dict[str, Any]:
    """Return the quality of a subspace whose axes were not fitted to the contrast prompts in `reservoir`. There is no stability,
    because no two halves were fitted, and the AUROC of a layer is that of the first axis."""
    found = measure_quality(reservoir.samples(), made.directions, lambda _half: made.directions, job.config.rank)
    axes, first = made.quality["axes"], made.axis_names[0]
    rows = [row | {"stability": None, "ordered": None, "auroc": of_axes["auroc"].get(first)}
            for row, of_axes in zip(found["layers"], axes["layers"], strict=True)]
    return found | {"layers": rows} | ({"axes": axes} if job.axes else {})
