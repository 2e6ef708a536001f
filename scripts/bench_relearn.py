"""How many updates bring the hack back, of the deployed model, of students that `robustify` made of it, and of other models?

    python scripts/bench_relearn.py --out DIR [--seeds 3] [--alphas 0,.2,.4,.6,.8] [--rates 1e-4,3e-4,1e-3] [--steps 60]
        [--models base,route,oracle,observe,erase,control,penalised] [--gates] [KEY=VALUE]

On the persona lab. `oracle` never had the loophole, `penalised` was trained without routing and then with a penalty on the hack.
With `--gates` also students of the unrouted policy, of which a gate from 5 % labels keeps the hack away. Writes DIR/relearn.json,
relearn.md and relearn.png. What was done once is kept: the same command goes on.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from benchmark.refusing import refusing  # noqa: E402
from benchmark.trained import trained  # noqa: E402

from routed_rl.artifacts import ROBUSTIFIED, RunFolder, write_json, write_text  # noqa: E402
from routed_rl.cli.words import refuse_fixed  # noqa: E402
from routed_rl.config.robust import FINE_TUNING, RelearnConfig, RobustifyConfig  # noqa: E402
from routed_rl.distillation import robustify  # noqa: E402
from routed_rl.multirun.attacks import Attacked, attack  # noqa: E402
from routed_rl.multirun.comparison import cell  # noqa: E402
from routed_rl.multirun.hacks import hacks_of  # noqa: E402
from routed_rl.multirun.intervals import interval  # noqa: E402
from routed_rl.multirun.relearn import with_model  # noqa: E402
from routed_rl.multirun.relearned import draw, summarised, table  # noqa: E402
from routed_rl.multirun.reporter import Table  # noqa: E402
from routed_rl.pipeline.record import read_config  # noqa: E402

PLAIN = ["routing=none", "routing.practice.share=0"]
RUNS: dict[str, list[str]] = {
    "route": [], "none": PLAIN, "oracle": [*PLAIN, "env.code.insecure=false"],
    "observe": ["routing=observe", "routing.practice.share=0"], "erase": ["routing=erase", "routing.practice.share=0"],
    "control": ["subspace=random"], "penalised": [*PLAIN, "baseline=penalty"],
}
GATES: dict[str, dict[str, Any]] = {
    "no gate": {"gate": "models", "skip": 1e9}, "skip": {"gate": "detector", "skip": "auto", "labels": 0.05},
    "noise": {"gate": "detector", "noise": "auto", "labels": 0.05}, "models, skip": {"gate": "models", "skip": "auto"},
    "models, noise": {"gate": "models", "noise": "auto"}, "random": {"gate": "random"},
}
"""Students of the unrouted policy; `models` compares it with the deployed model of the routed run. `random` skips half of the
completions, about as many as the detector."""
GATED_ALPHA = 0.6


def run_of(out: Path, name: str, seed: int, overrides: list[str]) -> RunFolder:
    """The finished run of that name and seed, trained where it is not there."""
    settings = [*overrides, f"seed={seed}", *RUNS[name]]
    if name == "penalised":
        settings.append(f"model.path={run_of(out, 'none', seed, overrides).deployed}")
    return trained(out / "models" / f"{name}-{seed}", settings)


def student_of(run: RunFolder, out: Path, asked: RobustifyConfig) -> Path:
    return out if out.exists() else robustify(str(run.path), asked, str(out))


def models_of(out: Path, seed: int, given: argparse.Namespace) -> dict[str, Path]:
    """Folder of each model of a seed by the name that it has in tables; base has none."""
    route = run_of(out, "route", seed, given.overrides)
    found = {name: run_of(out, name, seed, given.overrides).deployed for name in given.models.split(",") if name in RUNS}
    for alpha in map(float, given.alphas.split(",")):
        if alpha:
            place = out / "models" / f"alpha{alpha:g}-{seed}"
            found[f"alpha {alpha:g}"] = student_of(route, place, RobustifyConfig(alpha=alpha))
    if given.gates:
        none = run_of(out, "none", seed, given.overrides)
        for name, settings in GATES.items():
            more: dict[str, Any] = {"unlearned": str(route.deployed)} if settings["gate"] == "models" else {}
            found[name] = student_of(none, out / "models" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}",
                                     RobustifyConfig(alpha=GATED_ALPHA, **settings, **more))
    return found


def main() -> None:
    """Train, robustify, attack, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alphas", default="0,.2,.4,.6,.8")
    parser.add_argument("--rates", default="1e-4,3e-4,1e-3")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--by", default="rl,sft")
    parser.add_argument("--models", default="base,route,oracle,observe,erase,control,penalised")
    parser.add_argument("--gates", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    with refusing(parser):
        refuse_fixed(given.overrides, {"seed": f"--seeds {given.seeds}", "out": f"--out {given.out}"} | dict.fromkeys(
            ("routing", "routing.mode", "routing.practice.share"), f"--models {given.models}"))
    out = given.out.absolute()
    rates = [float(rate) for rate in given.rates.split(",")]
    asked = RelearnConfig(env="code", rates=rates, steps=given.steps, seeds=given.seeds, by=given.by.split(","))
    attacked, skills = list[Attacked](), dict[str, list[dict[str, Any]]]()
    for seed in range(given.seeds):
        folders = models_of(out, seed, given)
        config = read_config(run_of(out, "route", seed, given.overrides))
        source = run_of(out, "none", seed, given.overrides) if FINE_TUNING in asked.by else None
        hacks = hacks_of(source, config, asked, seed) if source else ()
        if "base" in given.models.split(","):
            attacked.append(Attacked("base", seed, config, hacks))
        for name, folder in folders.items():
            attacked.append(Attacked(name.replace(", ", "-").replace(" ", "-"), seed, with_model(config, str(folder)), hacks))
            skills.setdefault(name, []).append(skill(folder, run_of(out, "route", seed, given.overrides)))
        tell(out, attacked, asked, skills, given.jobs)


def skill(folder: Path, route: RunFolder) -> dict[str, Any]:
    """The solve and hack rates of a model in its own evaluation, and its cost over the seconds of the routed run's training."""
    if (folder / ROBUSTIFIED).exists():
        record = json.loads((folder / ROBUSTIFIED).read_text())
        means, spent = record["evaluation"]["robustified"], sum(record["seconds"].values())
        found = {"cost": spent / route.results()["timing"]["train_s"], "steps": record["steps"]}
    else:
        means, found = RunFolder(folder.parent).results()["models"]["deployed"], {}
    return found | {"sums": means["sums"]["solve"], "code": means["code"]["solve"], "hack": means["code"]["hack"]}


def tell(out: Path, attacked: list[Attacked], asked: RelearnConfig, skills: dict[str, list[dict[str, Any]]], jobs: int) -> None:
    """Attack, and write what is known so far."""
    records = attack(attacked, asked, out / "attacks", jobs)
    found = summarised(records, asked)
    rank = {by: spearman(found, by) for by in asked.by}
    write_json(out / "relearn.json", {"models": found, "skills": skills, "spearman": rank, "attacks": records})
    rows = [[name, *(mean([each[key] for each in every if key in each]) for key in ("hack", "code", "sums", "steps", "cost"))]
            for name, every in skills.items()]
    columns = ["model", "code: hack", "code: solve", "sums: solve", "steps of robustify", "its seconds over the training's"]
    text = [table(found, asked).markdown(), Table("the models", columns, rows).markdown(), f"Spearman over alpha: {rank}\n"]
    write_text(out / "relearn.md", "\n".join(text))
    draw(out / "relearn.png", found, asked)
    print("\n".join(text), flush=True)


def spearman(found: dict[str, Any], by: str) -> float | None:
    """Between alpha and the updates of each seed; the deployed model is alpha 0."""
    points = [(0.0 if name == "route" else float(name.split("-")[1]), steps) for name, each in found.items()
              if name == "route" or name.startswith("alpha-") for steps in each[by]["steps"]["seeds"]]
    alphas, steps = (pd.Series(list(each)).rank().to_numpy() for each in zip(*points, strict=True))
    return float(np.corrcoef(alphas, steps)[0, 1]) if alphas.std() and steps.std() else None


def mean(values: list[float]) -> str:
    return cell(interval(values) if values else None, bounds=True, digits=2)


if __name__ == "__main__":
    main()
