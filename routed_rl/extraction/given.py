"""Makes subspaces from vectors that were found elsewhere: decoder rows of an SAE, or vectors in a file."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from routed_rl.artifacts import ADAPTER_CONFIG
from routed_rl.errors import SubspaceError
from routed_rl.extraction.activations import gather
from routed_rl.extraction.contrast import read_prompts, tokenize_pairs
from routed_rl.extraction.job import Job
from routed_rl.extraction.personas import persona_pairs, read_questions
from routed_rl.model.targets import family, find_writers
from routed_rl.subspace import Subspace
from routed_rl.subspace.methods import rotated
from routed_rl.subspace.named import NamedVector, find_named
from routed_rl.subspace.sae import read_latents
from routed_rl.subspace.samples import Reservoir
from routed_rl.subspace.separation import measure_axes
from routed_rl.subspace.vectors import Wanted, placed, read_vectors

PROMPTS, ACTIVATIONS = 128, 512
"""Numbers by which the scale of a model's stream is measured: `PROMPTS` is the largest number of pairs of ordinary prompts that
are run, and `ACTIVATIONS` the number of activations that are kept for each layer."""


def from_sae(job: Job) -> Callable[[], Subspace]:
    """Read latents of an SAE, and return a function that makes a subspace whose axes are the latents' decoder rows. The scale of
    an axis is the mean value of the latent where it is active, times the norm of its row. If that is not known, because the
    encoder is missing or the latent is never active, the scale is the stream's standard deviation along the row."""
    config = job.config
    latents = read_latents(config.weights or "", config.latents, job.width)
    layer = latents.layer if config.layer is None else config.layer
    if layer is None or not 0 <= layer < job.layers:
        said = "does not say which layer it reads" if layer is None else f"reads layer {layer} of {job.layers}"
        raise SubspaceError(f"the SAE {config.weights} {said}; set subspace.layer=N (0 to {job.layers - 1})")
    job = job.changed(hook=latents.hook or config.hook)
    at = range(job.layers) if config.everywhere else [layer]
    vectors = [NamedVector(f"latent_{number}", dict.fromkeys(at, -row if config.flip else row), {})
               for number, row in zip(latents.numbers, latents.rows_JD, strict=True)]
    gathered, ordinary = ordinary_stream(job)

    def make() -> Subspace:
        reservoir = gathered()
        active = latents.mean_active(reservoir.activations()[layer])
        scaled = [vector if value is None else replace(vector, scales=dict.fromkeys(at, value * row.norm().item()))
                  for vector, row, value in zip(vectors, latents.rows_JD, active, strict=True)]
        known = [number for number, value in zip(latents.numbers, active, strict=True) if value is not None]
        details = {"layer": layer, "latents": latents.numbers, "scaled_by_mean_active_value": known, "prompts": ordinary}
        return from_vectors(job, scaled, reservoir, str(config.weights), details)

    return make


def from_file(job: Job) -> Callable[[], Subspace]:
    """Read `subspace.path`, and return a function that makes the subspace. If the path is the folder of a subspace, this subspace
    is returned unchanged. Vectors from any other file become named axes, whose scale is the stream's standard deviation along
    them."""
    path = Path(job.config.path or "").expanduser()
    if not path.is_file() and not (path / ADAPTER_CONFIG).is_file():
        subspace = Subspace.load(path)
        subspace.check_model(model=job.model_path, model_hash=job.model_hash, width=job.width, layers=job.layers)
        return lambda: subspace
    found = read_vectors(path, wanted_of(job, path))
    vectors = placed(found, job.layers, job.config.layer, job.config.everywhere, job.config.flip)
    gathered, ordinary = ordinary_stream(job)
    return lambda: from_vectors(job, vectors, gathered(), str(path), {"prompts": ordinary})


def wanted_of(job: Job, path: Path) -> Wanted:
    """Return what `read_vectors` must know of the job's model to read the file or adapter folder `path`."""
    wanted = Wanted(job.layers, job.width, job.config.weakest, job.config.rank)
    if not (path / ADAPTER_CONFIG).is_file():
        return wanted
    row = family(job.model)
    gains = {(writer.layer, writer.name.removeprefix(f"{row.layers}.{writer.layer}.")): writer.gain_D
             for writer in (find_writers(job.model) if row.post_norms or row.scales else []) if writer.gain_D is not None}
    writers = [re.escape(writer) for writer in row.writers if writer != row.experts]
    if row.experts is not None:  # modules of their own, as some models store them
        own = (f"{row.experts}.", ".down_proj")
        writers += [rf"{re.escape(start)}\d+{re.escape(end)}" for start, end in {own, row.stored or own}]
    return replace(wanted, stack=row.layers, writers=tuple(writers), mixture=row.experts, gains=gains)


def ordinary_stream(job: Job) -> tuple[Callable[[], Reservoir], str]:
    """Return a function that gathers the model's activations at the ends of ordinary prompts, and the file of these prompts (""
    if they were given in memory). The prompts are contrast prompts if any are given or known for the model, otherwise questions
    of the persona lists. At most `PROMPTS` pairs of them are used, at even distances in the file."""
    if job.pairs is not None:
        pairs, source = list(job.pairs), ""
    elif source := job.config.prompts_for(job.model_path):
        pairs = read_prompts(source)
    else:
        source = job.config.questions_file or ""
        pairs = persona_pairs(job.config, job.tokenizer, read_questions(job.config, job.config.questions))
    tokens = tokenize_pairs(job.tokenizer, pairs[:: -(-len(pairs) // PROMPTS)], job.model, job.config.positions)
    return partial(gather, job.changed(tokens="prompt_end"), tokens, sample=ACTIVATIONS), source


def from_random(job: Job) -> Callable[[], Subspace]:
    """Read the subspace at `subspace.path`, and return a function that makes its random control: the same axes, scales and units,
    but directions that are turned, at all layers, by one random rotation of the stream."""
    make = from_file(job)

    def turned() -> Subspace:
        real = make()
        spreads = [real.strengths(layer) * real.units[layer] for layer in range(job.layers)]
        unmeasured = dict.fromkeys(("stability", "captured", "captured_random", "captured_ratio", "captured_place"))
        quality = real.quality | {"layers": [row | unmeasured for row in real.quality["layers"]]}  # those of the axes stay
        details = {"of": job.config.path, "real": asdict(real.provenance), "seed": job.seed, **job.read_at(real)}
        return replace(real, directions=rotated(real.directions, job.seed), spreads=spreads,
                       provenance=job.provenance("", details), quality=quality)

    return turned


def from_vectors(job: Job, vectors: list[NamedVector], reservoir: Reservoir, source: str, details: dict[str, Any]) -> Subspace:
    """Make the subspace whose axes are the given vectors. `reservoir`: activations of ordinary prompts, which give the scales.
    `source`, `details`: the vectors' file and further facts, for the provenance. Nothing is fitted, so all figures of quality are
    held out."""
    stream = reservoir.activations()
    found = find_named(vectors, stream, job.size)
    quality = no_quality(found.directions, job.config.rank)
    if job.axes:
        quality["axes"] = measure_axes(reservoir.samples(), lambda _half: found, found, fitted=False)
    sample = stream[:, torch.randperm(stream.shape[1], generator=torch.Generator().manual_seed(0))[:64]]
    return found.subspace(sample - sample.mean(dim=1, keepdim=True), job.provenance(source, details), quality)


def no_quality(directions: list[Tensor], rank: int | None) -> dict[str, Any]:
    """Return the quality of vectors that were not fitted to prompts, in the form that `measure_quality` returns: it has the ranks
    of the layers and no figures. `rank`: the rank that the settings asked for."""
    return {"pairs": None, "rank": rank, "draws": 0, "layers": [
        {"layer": layer, "rank": basis.shape[1]} for layer, basis in enumerate(directions)]}
