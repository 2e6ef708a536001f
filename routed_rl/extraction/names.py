"""The names of a subspace's axes, as far as they are known before the subspace is extracted."""

from collections.abc import Callable
from pathlib import Path

from routed_rl.config import UNNAMED
from routed_rl.extraction.find import extracted_folder, parts_of
from routed_rl.extraction.given import wanted_of
from routed_rl.extraction.job import Job
from routed_rl.extraction.personas import traits_of
from routed_rl.subspace import Subspace
from routed_rl.subspace.vectors import read_vectors


def axis_names(job: Job) -> list[str]:
    """Return every name that an axis of the job's subspace may have, in their order. The axes that a method numbers may be fewer,
    because their number depends on the strength of the directions. `prepare` must have accepted the job."""
    config = job.config
    if config.method == "random" and config.path:
        return _of_file(job)
    return NAMES[config.method](job) if config.method in NAMES else [
        "persona", *_numbered("component", job.width if config.rank is None else config.rank)]


def _of_file(job: Job) -> list[str]:
    if (folder := extracted_folder(job.config)) is not None:
        return Subspace.load(folder).axis_names
    path = Path(job.config.path or "").expanduser()
    return list(read_vectors(path, wanted_of(job, path)))


def _of_roles(job: Job) -> list[str]:
    more = job.config.role_components if job.config.rank is None else job.config.rank - 1
    return ["away_from_assistant", *_numbered("role_component", more)]


def _numbered(name: str, most: int) -> list[str]:
    return [f"{name}_{number}" for number in range(1, most + 1)]


NAMES: dict[str, Callable[[Job], list[str]]] = {
    "assistant_axis": _of_roles, "persona_vectors": lambda job: ["persona", *traits_of(job.config)],
    "sae": lambda job: [f"latent_{number}" for number in job.config.latents], "file": _of_file,
    "union": lambda job: [f"{name}.{axis}" for name, part in parts_of(job) for axis in axis_names(part)],
    **dict.fromkeys(UNNAMED, lambda job: [job.config.method]),
    "dct": lambda job: [f"dct_{number}" for number in range(job.config.factors)]}
"""For each method whose axes are not `persona` and `component_K`: the function that returns their names."""
