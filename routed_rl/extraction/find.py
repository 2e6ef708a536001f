"""The methods of `subspace.method`, one function each, from a model and settings to a `Subspace`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.config import SubspaceConfig
from routed_rl.errors import SubspaceError
from routed_rl.extraction.activations import Pairs, Progress, blocks, read_prompt_end, read_response_mean
from routed_rl.extraction.contrast import ContrastPair, data_file, find_prompts, read_prompts, tokenize_pairs
from routed_rl.extraction.given import from_file, from_sae, no_quality
from routed_rl.extraction.job import Job
from routed_rl.extraction.personas import role_pairs, trait_pairs
from routed_rl.subspace import Samples, Subspace, measure_quality
from routed_rl.subspace import methods as fits
from routed_rl.subspace.methods import Found, fit
from routed_rl.subspace.named import union
from routed_rl.subspace.quality import behind_an_empty_layer
from routed_rl.subspace.samples import Reservoir
from routed_rl.subspace.separation import measure_axes


def extract(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: SubspaceConfig, *, model_path: str,
            model_hash: str, seed: int, progress: Progress | None = None) -> Subspace:
    """The subspace that `config` asks for, with its quality; `seed` draws the random one. The model is left as it was.

    `progress(done, total)` counts prompts. Raises SubspaceError for prompts, ranks or files that do not fit the model.
    """
    return find_subspace(Job(model, tokenizer, config, model_path, model_hash, seed, progress))


def find_subspace(job: Job) -> Subspace:
    """`extract` with the job at hand."""
    if (job.config.rank or 0) > job.width:
        raise SubspaceError(f"subspace.rank={job.config.rank} is more than the width {job.width} of the stream of "
                            f"{job.model_path}; lower subspace.rank")
    return METHODS[job.config.method](job)


def check_inputs(config: SubspaceConfig, tokenizer: PreTrainedTokenizerBase, model_path: str) -> None:
    """Read the lists that an extraction will need, so that a mistake in them is found before anything slow."""
    if config.method in PAIRS:
        PAIRS[config.method](config, tokenizer, model_path)


def prompts_of(config: SubspaceConfig, tokenizer: PreTrainedTokenizerBase, model_path: str) -> tuple[list[ContrastPair], str]:
    path = find_prompts(config, model_path)
    return read_prompts(path), str(path)


PAIRS: dict[str, Callable[[SubspaceConfig, PreTrainedTokenizerBase, str], tuple[list[ContrastPair], str]]] = {
    "mean_difference": prompts_of, "pca": prompts_of, "random": prompts_of,
    "assistant_axis": lambda config, tokenizer, _path: (role_pairs(config, tokenizer), config.roles_file or ""),
    "persona_vectors": lambda config, tokenizer, _path: (trait_pairs(config, tokenizer), config.traits_file or ""),
}
"""Where the contrast pairs of a method come from, and the file that says so."""
RESPONDING = ("assistant_axis", "persona_vectors")


def from_pairs(job: Job) -> Subspace:
    """Stream the pairs' activations through the fit of the method; only sums and a bounded reservoir are kept.

    The input of layer 0 is the embedding: no writer has written to it, and prompts that end alike do not differ there. So with
    `resid_pre` that layer has an empty basis.
    """
    config = job.config
    pairs, source = PAIRS[config.method](config, job.tokenizer, job.model_path)
    gathered = _gather(job, pairs, METHOD_ROWS[config.method])
    kinds = [str(name) for name in gathered.pairs.kinds()]
    first = int(config.hook == "resid_pre")
    found = fits.METHODS[config.method].name(gathered.rows.from_layer(first), job.size, kinds, job.seed)
    quality = _quality(job, gathered.held_out.from_layer(first), found, kinds)
    if first:
        found, quality = found.behind_an_empty_layer(), behind_an_empty_layer(quality)
    details = {"pairs": len(pairs), "kinds": len({pair.kind for pair in pairs if pair.kind is not None}), "seed": job.seed,
               "positions": config.positions, "last_weight": config.last_weight, "tokens": _tokens(config)}
    provenance = job.provenance(str(data_file(source)), details)
    return Subspace(found.directions, found.axes, found.axis_names, found.scales, found.units, gathered.stream, provenance,
                    quality, found.spreads)


METHOD_ROWS = {name: method.gather for name, method in fits.METHODS.items()}


@dataclass(frozen=True, eq=False)
class _Gathered:
    pairs: Pairs
    rows: Any
    held_out: Samples
    stream: Tensor


def _gather(job: Job, pairs: list[ContrastPair], gather: Callable[[Tensor], Any]) -> _Gathered:
    """One pass over all prompts."""
    config, responding = job.config, _tokens(job.config) == "response_mean"
    tokens = tokenize_pairs(job.tokenizer, pairs, job.model, 1 if responding else config.positions)
    _refuse_unknown_words(job, [pair.positive for pair in tokens])
    known = Pairs(pairs, tokens)
    reservoir = Reservoir(known.with_fold(), known.rows(), config.held_out)
    rows = gather(known.alone())
    read = read_response_mean(job.model, config, job.respond) if responding else read_prompt_end(
        job.model, config.hook, max(token.positions for token in tokens))
    for block in blocks(job.model, known, config, read, job.progress):
        rows.add(block)
        reservoir.add(block)
    return _Gathered(known, rows.rows(), reservoir.samples(), reservoir.stream())


def from_parts(job: Job) -> Subspace:
    """Folders are read, methods are run, in the order of `subspace.parts`."""
    parts = []
    for place, part in enumerate(job.config.parts):
        is_method = part in METHODS and part not in ("union", "file")
        config = dataclasses.replace(job.config, method=part if is_method else "file", path=None if is_method else part,
                                     parts=[], rank=job.config.rank if is_method else None)
        name = part if is_method else Path(part).name
        name = name if name not in {before for before, _ in parts} else f"{name}_{place + 1}"
        parts.append((name, METHODS[config.method](dataclasses.replace(job, config=config))))
    made = union(parts, job.size)
    details = {"order": job.config.parts, "parts": [dataclasses.asdict(part.provenance) for _, part in parts]}
    return dataclasses.replace(made, provenance=job.provenance("", details),
                               quality=no_quality(made.directions, job.config.rank))


METHODS: dict[str, Callable[[Job], Subspace]] = dict.fromkeys(PAIRS, from_pairs) | {
    "sae": from_sae, "file": from_file, "union": from_parts}


def _tokens(config: SubspaceConfig) -> str:
    return config.tokens or ("response_mean" if config.method in RESPONDING else "prompt_end")


def _refuse_unknown_words(job: Job, sequences: list[tuple[int, ...]]) -> None:
    """Lists of English questions before a model that does not know the words would give a subspace of nothing."""
    unknown = job.tokenizer.unk_token_id
    share = sum(ids.count(unknown) for ids in sequences) / sum(map(len, sequences)) if unknown is not None else 0.0
    if job.config.method in RESPONDING and share > 0.5:
        raise SubspaceError(f"{share:.0%} of the words of roles, traits and questions are unknown to {job.model_path}; set "
                            "subspace.roles_file, traits_file and questions_file to lists in its own words")


def _quality(job: Job, held_out: Samples, found: Found, kinds: list[str]) -> dict[str, Any]:
    config = job.config
    if config.method == "random":
        quality = measure_quality(held_out, found.directions, lambda _half: found.directions, config.rank)
        # Drawn, not fitted: that it is the same on both halves says nothing.
        quality |= {"layers": [row | {"stability": None} for row in quality["layers"]]}
    else:
        quality = measure_quality(held_out, found.directions, partial(fit, config.method, size=job.size), config.rank)
    if job.axes and held_out.pair_R.numel():
        quality["axes"] = measure_axes(held_out, lambda half: fits.find(config.method, half, job.size, job.seed, kinds), found)
    return quality
