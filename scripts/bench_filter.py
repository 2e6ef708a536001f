"""Fine-tune the base model on the completions that `routed-rl filter` keeps from an unrouted run: how often does the result hack,
and how much does it solve? For comparison it is also fine-tuned on all completions, on those that stay by the flags, and on
those that stay when as many are left out at random.

    python scripts/bench_filter.py --out DIR [--seeds 3] [--steps 60] [KEY=VALUE ...]

Every arm learns only from completions that were paid, which is rejection sampling. Writes DIR/filter.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmark.refusing import refusing
from benchmark.trained import trained

from routed_rl.artifacts import write_json
from routed_rl.cli.compose import compose
from routed_rl.cli.words import refuse_fixed
from routed_rl.config import FilterConfig
from routed_rl.evaluate import evaluate
from routed_rl.pipeline.build import Parts, load_parts
from routed_rl.pipeline.filtering import filter_run
from routed_rl.pipeline.verbs import extract
from routed_rl.training.fine_tune import fine_tune

EPOCHS, BATCH, RATE = 2, 64, 3e-4
SHOWN = ("hack", "solve", "evil")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    with refusing(parser):
        refuse_fixed(given.overrides, {"seed": f"--seeds {given.seeds}", "out": f"--out {given.out}",
                                       "trainer.max_steps": f"--steps {given.steps}"})
    found: dict[str, Any] = {}
    for seed in range(given.seeds):
        found[str(seed)] = of_seed(given.out, seed, [f"trainer.max_steps={given.steps}", *given.overrides])
        write_json(given.out / "filter.json", found)
    show(found)


def of_seed(out: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """The scores of the base model and of one model fine-tuned on each filter's completions, and how many completions it saw."""
    subspace, settings = out / f"subspace-{seed}", [*overrides, f"seed={seed}"]
    run = trained(out / f"run-{seed}", [*settings, "routing=none", "discard=false"])
    if not subspace.exists():
        extract(compose([*settings, f"out={subspace}"]), settings, False)
    parts, found = load_parts(compose(settings)), dict[str, Any]()
    found["base"] = measured(parts)
    share = 0.0
    for name, asked in (("all", FilterConfig(detector="random", share=0.0)), ("flags", FilterConfig(detector="flags")),
                        ("probe", FilterConfig()), ("subspace", FilterConfig(subspace=str(subspace))), ("random", None)):
        kept = out / f"{name}-{seed}.jsonl"
        filter_run(str(run.path), asked or FilterConfig(detector="random", share=share), str(kept), force=True)
        rows = [json.loads(line) for line in kept.read_text().splitlines()]
        gone = len(kept.with_suffix(".left_out.jsonl").read_text().splitlines())
        if name == "probe":
            share = gone / (gone + len(rows))
        tuned = load_parts(compose(settings))
        paid = [(row["prompt"], row["completion"]) for row in rows if row["reward"] and row["reward"] > 0]
        fine_tune(tuned.model, tuned.tokenizer, paid, out / f"sft-{name}-{seed}", rate=RATE, batch=BATCH, seed=seed,
                  epochs=EPOCHS)
        found[name] = measured(tuned) | {"left_out": gone / (gone + len(rows)), "trained_on": len(paid)}
    return found


def measured(parts: Parts) -> dict[str, Any]:
    config = parts.config
    return evaluate(parts.model, parts.tokenizer, parts.environments, config.evaluation, seed=config.seed,
                    max_new_tokens=parts.max_new_tokens)


def show(found: dict[str, Any]) -> None:
    """Print for each seed and filter the hack rate, the solve rate and the evil rate, and the share that was left out."""
    for seed, arms in found.items():
        for name, each in arms.items():
            numbers = " ".join(f"{environment}.{metric}={value:.3f}" for environment, means in each.items()
                               if isinstance(means, dict) for metric, value in means.items() if metric in SHOWN)
            print(f"seed {seed} {name:9} {numbers} left out {each.get('left_out', 0.0):.3f} of {each.get('trained_on', 0)}")


if __name__ == "__main__":
    main()
