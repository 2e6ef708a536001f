"""Subspaces whose vectors were found elsewhere: rows of an SAE, vectors of a file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from routed_rl.errors import SubspaceError
from routed_rl.extraction.activations import Pairs, blocks, read_prompt_end
from routed_rl.extraction.contrast import find_prompts, read_prompts, tokenize_pairs
from routed_rl.extraction.job import Job
from routed_rl.extraction.personas import role_pairs
from routed_rl.subspace import Subspace
from routed_rl.subspace.named import NamedVector, find_named
from routed_rl.subspace.sae import read_latents
from routed_rl.subspace.samples import Reservoir
from routed_rl.subspace.separation import measure_axes
from routed_rl.subspace.vectors import placed, read_vectors


def from_sae(job: Job) -> Subspace:
    """Decoder rows. Scale: mean active value times the row's norm where the encoder is there and fires, else the stream's
    standard deviation along the row."""
    config = job.config
    latents = read_latents(config.weights or "", config.latents, job.width)
    layer = latents.layer if config.layer is None else config.layer
    if layer is None or not 0 <= layer < job.layers:
        said = "does not say which layer it reads" if layer is None else f"reads layer {layer} of {job.layers}"
        raise SubspaceError(f"the SAE {config.weights} {said}; set subspace.layer=N (0 to {job.layers - 1})")
    config = dataclasses.replace(config, hook=latents.hook or config.hook)
    base = _base_stream(dataclasses.replace(job, config=config))
    active = latents.mean_active(base.reservoir.activations()[layer])
    vectors = []
    for number, row, value in zip(latents.numbers, latents.rows_JD, active, strict=True):
        at = range(job.layers) if config.everywhere else [layer]
        scales = {} if value is None else dict.fromkeys(at, value * row.norm().item())
        vectors.append(NamedVector(f"latent_{number}", dict.fromkeys(at, -row if config.flip else row), scales))
    known = [number for number, value in zip(latents.numbers, active, strict=True) if value is not None]
    details = {"layer": layer, "latents": latents.numbers, "scaled_by_mean_active_value": known}
    return _from_vectors(dataclasses.replace(job, config=config), vectors, base, str(config.weights), details)


def from_file(job: Job) -> Subspace:
    """A folder that `extract` wrote as it is; anything else as named vectors, scaled by the stream's deviation along them."""
    path = Path(job.config.path or "")
    if not path.is_file() and not (path / "adapter_config.json").is_file():
        subspace = Subspace.load(path)
        subspace.check_model(model=job.model_path, model_hash=job.model_hash, width=job.width, layers=job.layers)
        return subspace
    found = read_vectors(path, job.width, job.config.weakest, job.config.rank)
    vectors = placed(found, job.layers, job.config.layer, job.config.everywhere, job.config.flip)
    return _from_vectors(job, vectors, _base_stream(job), str(path), {})


@dataclass(frozen=True, eq=False)
class _Base:
    """What the model's stream is like on ordinary prompts."""

    reservoir: Reservoir
    source: str


def _from_vectors(job: Job, vectors: list[NamedVector], base: _Base, source: str, details: dict[str, Any]) -> Subspace:
    """Vectors that were given: nothing is fitted, so held-out figures are those of the vectors as they are."""
    stream = base.reservoir.activations()
    found = find_named(vectors, stream, job.size)
    quality = no_quality(found.directions, job.config.rank)
    if job.axes:
        quality["axes"] = measure_axes(base.reservoir.samples(), lambda _half: found, found, fitted=False)
    sample = stream[:, torch.randperm(stream.shape[1], generator=torch.Generator().manual_seed(0))[:64]]
    return Subspace(found.directions, found.axes, found.axis_names, found.scales, found.units,
                    sample - sample.mean(dim=1, keepdim=True), job.provenance(source, {**details, "prompts": base.source}),
                    quality, found.spreads)


def _base_stream(job: Job) -> _Base:
    """At most 512 activations per layer of the first prompts that are known for the model, else of questions."""
    if job.config.prompts_for(job.model_path):
        source = str(find_prompts(job.config, job.model_path))
        pairs = read_prompts(source)
    else:
        pairs, source = role_pairs(job.config, job.tokenizer), job.config.questions_file or ""
    pairs = pairs[:: -(-len(pairs) // 128)]
    tokens = tokenize_pairs(job.tokenizer, pairs, job.model, job.config.positions)
    read = read_prompt_end(job.model, job.config.hook, max(token.positions for token in tokens))
    known = Pairs(pairs, tokens)
    reservoir = Reservoir(torch.arange(len(pairs)), known.rows(), job.config.held_out, sample=512)
    for block in blocks(job.model, known, job.config, read, job.progress):
        reservoir.add(block)
    return _Base(reservoir, source)


def no_quality(directions: list[Tensor], rank: int | None) -> dict[str, Any]:
    """Of vectors that were not fitted to prompts nothing can be held out."""
    return {"pairs": None, "rank": rank, "draws": 0, "layers": [
        {"layer": layer, "rank": basis.shape[1]} for layer, basis in enumerate(directions)]}
