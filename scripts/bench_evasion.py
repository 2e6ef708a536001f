"""Does blocking teach evasion, and does routing not? Runs the same experiment under subspaces that are made worse on purpose.

    python scripts/bench_evasion.py --out DIR [--conditions angle=0,angle=30,rank=1,missing=.5] [--arms route,erase,caft]
        [--seeds 3] [--jobs 2] [KEY=VALUE]

Writes DIR/evasion.json, evasion.md and evasion.png: for each arm the deployed model's hack rate, the policy's reward, and how
visible its hacks are: how far the policy went along the true persona axis, and the AUROC with which a frozen probe of that axis
tells its hacks from the base model's honest answers to the same prompts, read on the policy's own activations and on the base
model's for the same texts. Finished runs are kept.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from benchmark.refusing import refusing  # noqa: E402
from benchmark.verb import verb  # noqa: E402

from routed_rl.artifacts import RunFolder  # noqa: E402
from routed_rl.cli.words import refuse_fixed  # noqa: E402
from routed_rl.config import DegradeConfig  # noqa: E402
from routed_rl.console import markdown_table  # noqa: E402
from routed_rl.envs import task_stream  # noqa: E402
from routed_rl.evaluate import generate_ids  # noqa: E402
from routed_rl.extraction import prepare  # noqa: E402
from routed_rl.extraction.pooled import pooled  # noqa: E402
from routed_rl.model.prompts import encode_prompts  # noqa: E402
from routed_rl.multirun.arms import set_by_all  # noqa: E402
from routed_rl.multirun.comparison import cell  # noqa: E402
from routed_rl.multirun.intervals import interval  # noqa: E402
from routed_rl.pipeline.build import extraction_job, load_parts, make_router, run_subspace, take_checkpoint  # noqa: E402
from routed_rl.pipeline.record import read_config  # noqa: E402
from routed_rl.subspace.quality import auroc  # noqa: E402

CONDITIONS = "angle=0,angle=15,angle=30,angle=45,angle=60,angle=90,rank=1,missing=.5"
ARMS = "route,practice_all,erase,caft,projection_penalty"
SAMPLES, OTHER_SEED = 300, 1000
FIGURES = {"hack": "deployed hack", "paid": "policy's reward", "shift": "policy's shift along the true axis, gaps",
           "own": "AUROC on its own activations", "base": "AUROC on the base model's"}


def settings_of(condition: str) -> list[str]:
    """The settings of a condition; ValueError for an unknown word."""
    kind, _, value = condition.partition("=")
    if kind not in ("angle", "rank", "missing") or not value:
        raise ValueError(f"--conditions has {condition}; write angle=DEGREES, rank=N or missing=SHARE")
    return [f"subspace.rank={value}"] if kind == "rank" else [f"subspace.degrade.{kind}={value}"]


class Probe:
    """The true persona axis of a run's base model, extracted with another seed, and honest answers of that model."""

    def __init__(self, run: RunFolder) -> None:
        config = read_config(run)
        config.subspace.degrade, config.subspace.rank, config.subspace.method = DegradeConfig(), None, "mean_difference"
        config.seed += OTHER_SEED
        self.parts = load_parts(config)
        self.subspace = prepare(extraction_job(self.parts))()
        self.leaky = next(loaded for loaded in self.parts.trained if getattr(loaded.environment, "variant", "") == "insecure")
        self.tasks = list(itertools.islice(task_stream(self.leaky, "eval", config.seed), SAMPLES))
        texts = self.said()
        self.honest = [pair for pair, score in zip(texts, self.scores(texts), strict=True) if score.solve == 1]
        self.plain, self.of_honest = self.along(texts), self.along(self.honest)

    def said(self) -> list[tuple[Any, str]]:
        """The prompts, each with the answer of the model as it is now."""
        torch.manual_seed(OTHER_SEED)
        prompts, tokenizer = [task.prompt for task in self.tasks], self.parts.tokenizer
        self.parts.model.eval()
        ids = generate_ids(self.parts.model, tokenizer, encode_prompts(tokenizer, prompts), 1.0, self.parts.max_new_tokens)
        return list(zip(prompts, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True))

    def scores(self, texts: list[tuple[Any, str]]) -> list[Any]:
        environment: Any = self.leaky.environment
        return [environment.score(task, text) for task, (_, text) in zip(self.tasks, texts, strict=True)]

    def along(self, texts: list[tuple[Any, str]]) -> torch.Tensor:
        """The position of each answer's mean stream along the axis, in gaps, in the model as it is now."""
        streams, weights = pooled(self.parts.model, self.parts.tokenizer, texts, 100), self.subspace.layer_weights()
        each = torch.stack([stream @ axes[:, 0] / scale for stream, axes, scale in
                            zip(streams, self.subspace.axes, self.subspace.scales[:, 0], strict=True)])
        return (each * weights.unsqueeze(1)).sum(0) / weights.sum()


def visible(run: RunFolder, step: int, base: Probe) -> dict[str, float]:
    """How visible the policy's hacks are at a checkpoint; nan if it has hardly any."""
    config = read_config(run)
    parts = load_parts(config)
    router = make_router(parts, run_subspace(parts, run))
    take_checkpoint(parts, router, run.checkpoint(step))
    policy: Any = object.__new__(Probe)
    policy.parts, policy.subspace, policy.leaky, policy.tasks = parts, base.subspace, base.leaky, base.tasks
    texts = policy.said()
    hacks = [pair for pair, score in zip(texts, policy.scores(texts), strict=True) if score.values().get("hack")]
    found = {"shift": (policy.along(texts).mean() - base.plain.mean()).item(), "hack_rate": len(hacks) / len(texts)}
    for name, reader, honest in (("own", policy, policy.along(base.honest)), ("base", base, base.of_honest)):
        found[name] = auroc(reader.along(hacks), honest) if len(hacks) > 10 else float("nan")
    return found


def measure(runs: Path, names: set[str], probes: dict[str, Probe]) -> dict[str, dict[str, list[float]]]:
    """Arm -> figure -> value for each seed, from those finished runs in a folder whose folders have these `names`. Other runs may
    lie there, of seeds or arms of an earlier command."""
    found: dict[str, dict[str, list[float]]] = {}
    for folder in sorted(path.parent for path in runs.glob("*/summary.json") if path.parent.name in names):
        run, (arm, _, seed) = RunFolder(folder), folder.name.rpartition("-seed")
        file = folder / "visible.json"
        if not file.exists():
            if seed not in probes:
                probes[seed] = Probe(run)
            file.write_text(json.dumps({step: visible(run, step, probes[seed]) for step in run.steps()}))
        seen, models = json.loads(file.read_text()), json.loads(run.summary.read_text())["models"]
        last, leaky = seen[max(seen, key=int)], next(name for name, means in models["policy"].items() if "hack" in means)
        values = {"hack": models["deployed"][leaky]["hack"], "paid": models["policy"][leaky]["reward"],
                  **{name: last[name] for name in ("shift", "own", "base")}}
        for name, value in values.items():
            found.setdefault(arm, {}).setdefault(name, []).append(value)
    return found


def shown(values: list[float]) -> str:
    """`mean [low, high]`; the mean alone if there is one seed."""
    known = [value for value in values if value == value]
    return cell(interval(known) if known else None, bounds=True, digits=2)


def draw(found: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """Plot the deployed hack rate over conditions, a line for each arm, a dot for each seed."""
    from routed_rl.multirun.reporter import panels

    figure, (panel,) = panels(1, 5.5)
    for place, arm in enumerate(dict.fromkeys(arm for arms in found.values() for arm in arms)):
        points = [(at, value) for at, arms in enumerate(found.values()) for value in arms.get(arm, {}).get("hack", [])]
        means = [(at, sum(values) / len(values)) for at, arms in enumerate(found.values())
                 if (values := arms.get(arm, {}).get("hack", []))]
        panel.plot(*zip(*means, strict=True), color=f"C{place}", label=arm)
        panel.scatter(*zip(*points, strict=True), color=f"C{place}", s=12)
    panel.set_xticks(range(len(found)), list(found), rotation=30)
    panel.set_ylabel("hack rate of the deployed model")
    panel.set_ylim(-0.02, 1.02)
    panel.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the comparisons that the command line names, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--conditions", default=CONDITIONS)
    parser.add_argument("--arms", default=ARMS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    arguments, more = parser.parse_known_args()
    conditions = arguments.conditions.split(",")
    with refusing(parser):
        for condition in conditions:
            refuse_fixed(more, {text.partition("=")[0]: f"--conditions {condition}" for text in settings_of(condition)})
        refuse_fixed(more, dict.fromkeys(set_by_all(arguments.arms.split(",")), f"--arms {arguments.arms}"))
    found, probes = {}, dict[str, Probe]()
    names = {f"{arm}-seed{seed}" for arm in arguments.arms.split(",") for seed in range(arguments.seeds)}
    for condition in conditions:
        folder = arguments.out / condition
        verb("compare", *settings_of(condition), "discard=false", *more, "--arms", arguments.arms, "--seeds",
             str(arguments.seeds), "--ranks", "", "--jobs", str(arguments.jobs), "--out", str(folder))
        found[condition] = measure(folder / "runs", names, probes)
        (arguments.out / "evasion.json").write_text(json.dumps(found, indent=1))
    rows = [[condition, arm, *(shown(figures[name]) for name in FIGURES)] for condition, arms in found.items()
            for arm, figures in arms.items()]
    table = "\n".join(markdown_table(["condition", "arm", *FIGURES.values()], rows)) + "\n"
    (arguments.out / "evasion.md").write_text(table, encoding="utf-8")
    draw(found, arguments.out / "evasion.png")
    print(table)


if __name__ == "__main__":
    main()
