"""The check of a subspace: computes figures of its quality, judges them by the thresholds of `subspace.check`, and makes tables
of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routed_rl.artifacts import write_json
from routed_rl.config import SubspaceCheckConfig
from routed_rl.extraction.causal import causal_check
from routed_rl.extraction.job import Job, Progress
from routed_rl.subspace import Subspace, check_quality, describe_quality
from routed_rl.subspace.quality import figure
from routed_rl.subspace.separation import best_layer, cosines

SHOWN = 12
"""The largest number of axes that a table or plot shows."""


@dataclass(frozen=True)
class Verdict:
    """A question about a subspace, the answer in words, and whether the answer is good (None if the question could not be
    answered)."""

    question: str
    answer: str
    good: bool | None


def check(job: Job, subspace: Subspace, progress: Progress | None = None) -> dict[str, Any]:
    """Compute the figures of a subspace and return plain JSON: `quality` has those of `measure_quality`, `axes` those of
    `measure_axes` (None if they were not measured), `causal` those of `causal_check`, and `cosines` compares the axes with those
    of each subspace in `subspace.compare_to`. For a union, `parts` has the `quality` of each of its parts by name, as it was
    measured of that part alone. `progress`: called after each direction of the causal check."""
    others = {path: Subspace.load(path) for path in job.config.compare_to}
    for other in others.values():
        other.check_model(model=job.model_path, model_hash=job.model_hash, width=job.width, layers=job.layers)
    causal = causal_check(job, subspace, progress) if job.config.check.axes else {"missing": "subspace.check.axes=0"}
    return {"quality": {key: value for key, value in subspace.quality.items() if key != "axes"},
            "axes": subspace.quality.get("axes"), "causal": causal,
            "cosines": {path: cosines(subspace, other) for path, other in others.items()}} | _of_parts(subspace)


def _of_parts(subspace: Subspace) -> dict[str, Any]:
    parts = subspace.provenance.details.get("parts", [])
    found = {part["name"]: part["quality"] for part in parts if part.get("quality")}  # an older union has none
    return {"parts": found} if found else {}


def write_check(found: dict[str, Any], folder: Path) -> None:
    """Write the figures, the result of `check`, as `check.json` and `check.png` into `folder`, the folder of the subspace."""
    write_json(folder / "check.json", found)
    from routed_rl.extraction.plot import draw_check  # loads matplotlib, which evaluations do not need

    draw_check(found, folder / "check.png", SHOWN)


def verdicts(found: dict[str, Any], limits: SubspaceCheckConfig) -> list[Verdict]:
    """Judge the figures, the result of `check`, by the user's thresholds `limits`. Returns one verdict for each question."""
    answers = {"separates held-out personas": _separation(found["axes"], limits.auroc),
               "two halves agree": _stability(found["quality"], limits.stability),
               "captures held-out differences": _captured(found["quality"]),
               "steering changes answers": _causal(found["causal"], limits.p)}
    return [Verdict(question, *(answer or ("not measured", None))) for question, answer in answers.items()]


def remarks(found: dict[str, Any]) -> list[str]:
    """Return remarks on the figures, the result of `check`, that do not make the check fail: weak layers, unexpected signs,
    figures that could not be measured."""
    lines = check_quality(found["quality"])
    lines += [f"part {name}: {line}" for name, quality in found.get("parts", {}).items() for line in check_quality(quality)]
    for axis in found["causal"].get("axes", []):
        if axis["p_corrected"] <= 0.05 and not axis["as_signed"]:
            lines.append(f"axis {axis['axis']} acts the other way round: pushing along it makes the positive persona's answers "
                         "less likely")
    if "missing" in found["causal"]:
        lines.append(found["causal"]["missing"])
    return lines


def tables(found: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Make tables of the figures, the result of `check`: quality by layer, separation by axis, causal effects, and cosines.
    Returns the lines of each table by its title; a line maps the column's heading to a text. Empty tables are left out."""
    quality, axes, causal = found["quality"], found["axes"], found["causal"]
    measured = {"quality by layer": quality} | {f"quality by layer of the part {name}, measured alone": each
                                                for name, each in found.get("parts", {}).items()}
    made = {title: describe_quality(each) if each["pairs"] is not None else [] for title, each in measured.items()}
    made["held-out separation (AUROC) by axis and layer, beside random directions"] = [
        {"layer": str(row["layer"]), **{name: figure(row["auroc"].get(name)) for name in axes["names"][:SHOWN]},
         "random": figure(row["random"]), "random, best": figure(row["random_best"])}
        for row in (axes["layers"] if axes else [])]
    if "missing" not in causal:
        made[f"causal check at layer {causal['layer']}, push of {causal['length']:.3g}: change of log p(positive) - log "
             f"p(negative), nat per token, {causal['answers']} questions"] = [
            {"axis": axis["axis"], "pushed along": f"{axis['more']:+.3f}", "pushed back": f"{axis['less']:+.3f}",
             "p": f"{axis['p']:.3f}", "corrected": f"{axis['p_corrected']:.3f}", "taken out": f"{axis['ablated']:+.3f}",
             "p (out)": f"{axis['ablation_p']:.3f}", "corrected (out)": f"{axis['ablation_p_corrected']:.3f}"}
            for axis in causal["axes"]]
    made |= {f"cosine to the axes of {path}, mean over layers": [
        {"axis": row["axis"], "nearest": row["nearest"] or "-", "cosine": f"{row['cosine']:+.2f}",
         "by chance": f"{row['chance']:.2f}"} for row in rows[:SHOWN]] for path, rows in found["cosines"].items()}
    return {title: rows for title, rows in made.items() if rows}


Answer = tuple[str, bool | None] | None
"""The answer to a question about a subspace, in words, and whether the answer is good (None if this could not be measured). None
instead of the pair if there is no figure to answer with."""


def _separation(axes: dict[str, Any] | None, limit: float) -> Answer:
    if axes is None or (layer := best_layer(axes, first := axes["names"][0])) is None:
        return "not measured: no contrast prompts, or too few", None
    row = axes["layers"][layer]
    value = row["auroc"][first]
    return (f"{first}: AUROC {value:.2f} at layer {layer} (random directions {figure(row['random'])}, best of them "
            f"{figure(row['random_best'])}); at least {limit:g}", value >= limit)


def _stability(quality: dict[str, Any], limit: float) -> Answer:
    values = [(row["stability"], row["layer"]) for row in quality["layers"] if row.get("stability") is not None]
    if not values:
        return None
    worst, layer = min(values)
    return f"mean squared cosine {worst:.2f} at the worst layer, {layer}; at least {limit:g}", worst >= limit


def _captured(quality: dict[str, Any]) -> Answer:
    ratios = [(row["captured_ratio"], row["captured_place"], row["layer"]) for row in quality["layers"]
              if row.get("captured_ratio") is not None]
    if not ratios:
        return None
    ratio, place, layer = min(ratios)
    return (f"{ratio:.1f} x a random basis at the worst layer, {layer} (place {place} of {quality['draws'] + 1}); it must be the "
            "first", all(place == 1 for _, place, _ in ratios))


def _causal(causal: dict[str, Any], limit: float) -> Answer:
    if "missing" in causal:
        return None
    best = min(causal["axes"], key=lambda axis: axis["p_corrected"])
    return (f"{best['axis']}: {best['steering']:+.2f} nat per token at layer {causal['layer']}, p = {best['p']:.3f} against "
            f"{len(causal['random']['steering'])} random directions, {best['p_corrected']:.3f} corrected for "
            f"{len(causal['axes'])} axes; at most {limit:g}", best["p_corrected"] <= limit)
