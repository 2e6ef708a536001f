"""The table of extraction methods by their names in `subspace.method`. A method takes a job and behaves as `prepare` does."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from routed_rl.artifacts import ADAPTER_CONFIG
from routed_rl.config import DegradeConfig, SubspaceConfig
from routed_rl.errors import SubspaceError
from routed_rl.extraction.activations import gather, kinds_of
from routed_rl.extraction.contrast import ContrastPair, TokenPair, data_file, read_prompts, tokenize_pairs
from routed_rl.extraction.factors import from_factors
from routed_rl.extraction.given import from_file, from_random, from_sae, no_quality
from routed_rl.extraction.job import OWN, Job
from routed_rl.extraction.personas import persona_pairs, read_questions
from routed_rl.extraction.preferences import from_preferences
from routed_rl.extraction.responses import require_responses
from routed_rl.subspace import Samples, Subspace, degrade, measure_quality
from routed_rl.subspace import methods as fits
from routed_rl.subspace.methods import Found
from routed_rl.subspace.named import union
from routed_rl.subspace.quality import behind_an_empty_layer
from routed_rl.subspace.sae import read_latents
from routed_rl.subspace.separation import measure_axes


def prepare(job: Job) -> Callable[[], Subspace]:
    """Read all inputs of an extraction, so that mistakes are found before slow work begins. Returns a function that makes the
    subspace, with its quality, by the job's settings. Neither `prepare` nor that function changes the model.

    SubspaceError for prompts, ranks or files that do not fit the model.
    """
    if (job.config.rank or 0) > job.width:
        raise SubspaceError(f"subspace.rank={job.config.rank} is more than the width {job.width} of the stream of "
                            f"{job.model_path}; lower subspace.rank")
    _refuse_flip(job.config)
    make, worse = METHODS[job.config.method](job), job.config.degrade
    return make if worse == DegradeConfig() else lambda: degrade(make(), worse.angle, worse.missing, job.seed)


def _refuse_flip(config: SubspaceConfig) -> None:
    """SubspaceError if `subspace.flip` is set where it would do nothing: for axes whose sign is known. Method `random` passes
    with any path, because a comparison puts it in place of the method of the experiment, which may need `flip`."""
    if config.flip and config.method != "random" and not _takes_flip(config):
        what = {"file": f"{config.path} is the folder of axes", "union": f"subspace.parts={config.parts} are axes"}.get(
            config.method, f"subspace.method={config.method} finds axes")
        raise SubspaceError(f"subspace.flip=true negates vectors of an SAE or a file, and {what} whose sign is known already; "
                            "leave it out, or exchange the positive and negative prompts")


def _takes_flip(config: SubspaceConfig) -> bool:
    """Whether `subspace.flip` negates vectors that these settings name. In a union it does so for one part or more."""
    if config.method == "union":
        return any(_takes_flip(dataclasses.replace(config, **_settings_of(part))) for part in config.parts)
    return config.method == "sae" or (config.method == "file" and extracted_folder(config) is None)


def extracted_folder(config: SubspaceConfig) -> Path | None:
    """Return the folder that `subspace.path` names if it holds a subspace; None if it names nothing, a file of vectors, or the
    folder of a LoRA."""
    path = Path(config.path or "").expanduser()
    return path if path.is_dir() and not (path / ADAPTER_CONFIG).is_file() else None


def from_pairs(job: Job) -> Callable[[], Subspace]:
    """Read the contrast pairs of a job, and return a function that makes a subspace by fitting the job's method to them."""
    if job.tokens == "response_mean":
        require_responses(job.model, job.tokenizer)
    pairs, source = _pairs(job)
    tokens = tokenize_pairs(job.tokenizer, pairs, job.model, 1 if job.tokens == "response_mean" else job.config.positions)
    if job.config.method in OWN:
        _refuse_unknown_words(job, [pair.positive for pair in tokens])
    return partial(_fitted, job, tokens, str(data_file(source)) if source is not None else "")


def _pairs(job: Job) -> tuple[list[ContrastPair], str | None]:
    """Return the contrast pairs that the job's method uses, and the file from which they come (None if there is no file)."""
    config = job.config
    if job.pairs is not None and config.method not in OWN:
        return list(job.pairs), None
    if config.method not in OWN:
        if (source := config.prompts_for(job.model_path)) is None:
            raise SubspaceError(f"no contrast prompts: none are set and none are known for model {job.model_path!r}; set "
                                "subspace.prompts=FILE.jsonl")
        return read_prompts(source), source
    source = config.roles_file if config.method == "assistant_axis" else config.traits_file
    return persona_pairs(config, job.tokenizer, read_questions(config, config.questions)), source or ""


def _refuse_unknown_words(job: Job, sequences: list[tuple[int, ...]]) -> None:
    """SubspaceError if the model does not know most of the words in `sequences`, prompts as token ids, because a subspace from
    them would mean nothing."""
    unknown = job.tokenizer.unk_token_id
    share = sum(ids.count(unknown) for ids in sequences) / sum(map(len, sequences)) if unknown is not None else 0.0
    if share > 0.5:
        raise SubspaceError(f"{share:.0%} of the words of roles, traits and questions are unknown to {job.model_path}; set "
                            "subspace.roles_file, traits_file and questions_file to lists in its own words")


def _fitted(job: Job, pairs: list[TokenPair], source: str) -> Subspace:
    """Fit the job's method to the activations of the pairs, which are read block by block; only sums and a bounded reservoir are
    kept. `source`: the file of the pairs, for the provenance.

    With `subspace.hook=resid_pre`, layer 0 has no directions: its input is the embedding, which is the same for two prompts that
    end with the same tokens.
    """
    config, method, kinds = job.config, fits.METHODS[job.config.method], kinds_of(pairs)
    names = [str(kind) for kind in kinds]
    rows = method.gather(torch.tensor([index for kind, index in kinds.items() if isinstance(kind, int)], dtype=torch.long))
    first = int(config.hook == "resid_pre")
    reservoir = gather(job, pairs, lambda block: rows.add(block.from_layer(first)))
    found = method.name(rows.rows(), job.size, names, job.seed)
    quality = _quality(job, reservoir.samples().from_layer(first), found, names)
    if first:
        found, quality = found.behind_an_empty_layer(), behind_an_empty_layer(quality)
    details = {"pairs": len(pairs), "kinds": sum(isinstance(kind, str) for kind in kinds), "seed": job.seed,
               "positions": config.positions, "last_weight": config.last_weight, "tokens": job.tokens}
    return found.subspace(reservoir.stream(), job.provenance(source, details), quality)


def _quality(job: Job, held_out: Samples, found: Found, kinds: list[str]) -> dict[str, Any]:
    drawn = job.config.method == "random"

    def fit(half: Samples) -> Found:
        return fits.find(job.config.method, half, job.size, job.seed, kinds)

    quality = measure_quality(held_out, found.directions, lambda half: found.directions if drawn else fit(half).directions,
                              job.config.rank)
    if drawn:  # it was not fitted, so the agreement of the halves means nothing
        quality |= {"layers": [row | {"stability": None} for row in quality["layers"]]}
    if job.axes and held_out.pair_R.numel():
        quality["axes"] = measure_axes(held_out, fit, found)
    return quality


def from_parts(job: Job) -> Callable[[], Subspace]:
    """Read the inputs of all `subspace.parts`, each of which is the folder of a subspace or the name of a method. Returns a
    function that makes the union of these subspaces, in the order of `subspace.parts`."""
    jobs = parts_of(job)
    makers = [(name, METHODS[alone.config.method](alone)) for name, alone in jobs]
    hooks = {name: _hook_of(alone) for name, alone in jobs}
    (first, at), *others = hooks.items()
    if wrong := [name for name, hook in others if hook != at]:
        raise SubspaceError(f"subspace.parts: {first} was read at {at} and {wrong[0]} at {hooks[wrong[0]]}, and a writer is "
                            "split where its basis was read; extract the parts with the same subspace.hook")

    def make() -> Subspace:
        parts = [(name, make_part()) for name, make_part in makers]
        made = union(parts, job.size)
        said = [dataclasses.asdict(part.provenance) | {"name": name, "quality": part.quality} for name, part in parts]
        details = {"order": job.config.parts, "parts": said, **job.read_at(parts[0][1])}
        return dataclasses.replace(made, provenance=job.provenance("", details),
                                   quality=no_quality(made.directions, job.config.rank) | made.quality)

    return make


def _hook_of(job: Job) -> str:
    """Return the hook point at which the stream is read, or was read, for the subspace that a job makes."""
    config, hook = job.config, None
    if config.method == "file" and (folder := extracted_folder(config)) is not None:
        hook = Subspace.load(folder).provenance.hook
    if config.method == "sae":
        hook = read_latents(config.weights or "", config.latents, job.width).hook
    return hook or config.hook


def parts_of(job: Job) -> list[tuple[str, Job]]:
    """Return the name of each part of a union, and the job that makes this part a subspace of its own."""
    found: list[tuple[str, Job]] = []
    for place, part in enumerate(job.config.parts):
        name = Path(part).name
        name = name if name not in {before for before, _ in found} else f"{name}_{place + 1}"
        found.append((name, job.changed(**_settings_of(part))))
    return found


def _settings_of(part: str) -> dict[str, Any]:
    """The settings that make a part of a union, the name of a method or the folder of a subspace, a subspace of its own."""
    if part in METHODS and part not in ("union", "file"):
        return {"method": part, "path": None, "parts": []}
    return {"method": "file", "path": part, "parts": [], "rank": None}


METHODS: dict[str, Callable[[Job], Callable[[], Subspace]]] = dict.fromkeys(fits.METHODS, from_pairs) | {
    "random": lambda job: (from_random if job.config.path else from_pairs)(job), "sae": from_sae, "file": from_file,
    "union": from_parts, "dct": lambda job: from_factors(job, prepare), "dpo": from_preferences, "bipo": from_preferences}
