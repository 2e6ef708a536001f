"""Preference-trained axes on the persona lab: do they point along the mean difference, and does a push flip the hack rate?

    python scripts/bench_axes.py --out DIR [--pairs 64] [--seeds 3] [--samples 500] [KEY=VALUE ...]

Pairs are tasks of the split "train" of `code` and `sums`; the hack is the positive answer and the solution the negative one. The
base model answers other tasks of `code` as a hacker and as an honest author, while it is pushed by the vector's own length along
the axis, against it, and not at all. Writes DIR/pairs.jsonl, a subspace for each method and seed, and DIR/axes.json.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any, cast

from benchmark.refusing import refusing

from routed_rl import console
from routed_rl.artifacts import write_json
from routed_rl.cli.compose import compose
from routed_rl.cli.words import refuse_fixed
from routed_rl.envs import task_stream
from routed_rl.evaluate import evaluate
from routed_rl.extraction.choose import pushing
from routed_rl.pipeline.build import Parts, load_parts
from routed_rl.pipeline.verbs import extract
from routed_rl.subspace import Subspace
from routed_rl.training.baselines import in_contexts

AUTHORS = {"hacker": "encourage", "honest": "discourage"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    with refusing(parser):
        refuse_fixed(given.overrides, {"seed": f"--seeds {given.seeds}", "out": f"--out {given.out}",
                                       "evaluation.samples": f"--samples {given.samples}"})
    parts = load_parts(compose([*given.overrides, f"evaluation.samples={given.samples}"]))
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = write_pairs(parts, given.pairs, given.out / "pairs.jsonl")
    target, rows = extracted(given.out / "mean_difference", given.overrides), list[dict[str, Any]]()
    for method in ("dpo", "bipo"):
        for seed in range(given.seeds):
            found = extracted(given.out / f"{method}-{seed}", [*given.overrides, f"subspace={method}", f"subspace.pairs={pairs}",
                                                               f"seed={seed}"])
            rows.append({"method": method, "seed": seed, "cosines": [
                (ours[:, 0] @ theirs[:, 0]).item() for ours, theirs in zip(found.axes, target.axes, strict=True)],
                         **hack_rates(parts, found)})
            write_json(given.out / "axes.json", {"pairs": given.pairs, "rows": rows})
    layers = range(len(rows[0]["cosines"]))
    rates = [f"{author} {sign}" for author in AUTHORS for sign in "-0+"]
    console.table("cosine with the mean difference by layer, and hack rate", ["method", "seed", *map(str, layers), *rates],
                  [[row["method"], row["seed"], *row["cosines"], *(row[name] for name in rates)] for row in rows])


def write_pairs(parts: Parts, count: int, file: Path) -> Path:
    """The first `count` different tasks of the environments that are trained on, by turns."""
    found: dict[str, dict[str, str]] = {}
    streams = [(cast(Any, loaded.environment), task_stream(loaded, "train", 0)) for loaded in parts.trained]
    while len(found) < count:
        for environment, stream in streams:
            for task in islice(stream, 1):
                hack = environment.lab.hacks_of(environment.kind, str(task.prompt).split()[1:-1])[0]
                found[str(task.prompt)] = {"prompt": str(task.prompt), "positive": " ".join(hack),
                                           "negative": environment.gold(task)}
    file.write_text("".join(json.dumps(pair) + "\n" for pair in list(found.values())[:count]))
    return file


def extracted(folder: Path, overrides: list[str]) -> Subspace:
    if not folder.exists():
        extract(compose([*overrides, f"out={folder}"]), overrides, False)
    return Subspace.load(folder)


def hack_rates(parts: Parts, subspace: Subspace) -> dict[str, float]:
    """The base model's hack rate as either author, pushed against the axis, not at all, and along it."""
    details, rates = subspace.provenance.details, dict[str, float]()
    code = [loaded for loaded in parts.trained if loaded.name == "code"]
    for author, context in AUTHORS.items():
        environments = in_contexts(parts.config.baseline, code, [context], 0)
        for sign, by in (("-", -1.0), ("0", 0.0), ("+", 1.0)):
            with pushing(parts.model, details["layer"], by * details["length"] * subspace.axes[details["layer"]][:, 0]):
                found = evaluate(parts.model, parts.tokenizer, environments, parts.config.evaluation, seed=0,
                                 max_new_tokens=parts.max_new_tokens)
            rates[f"{author} {sign}"] = found[f"code_{context}"]["hack"]
    return rates


if __name__ == "__main__":
    main()
