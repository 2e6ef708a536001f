"""Evaluates a run's models on environments, during training and at its end: the policy, the deployed model, and models with a
scaled quarantine."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from routed_rl import console
from routed_rl.config import EvaluationConfig
from routed_rl.envs import LoadedEnvironment
from routed_rl.evaluate import Told, evaluate
from routed_rl.pipeline.build import Parts
from routed_rl.pipeline.summary import Results
from routed_rl.rollout import Served
from routed_rl.routing import Router
from routed_rl.training.backends import PIECES

Means = dict[str, dict[str, float]]
"""Maps an environment to a mapping from metrics to means."""


def measure(parts: Parts, environments: list[LoadedEnvironment], served: Served | None, *, deployed: bool = False,
            title: str | None = None, config: EvaluationConfig | None = None, told: Told | None = None) -> Means:
    """Evaluate the model in its present state. `title` is the name under which progress is shown; None shows no progress.
    `config` replaces the run's settings of evaluation. `deployed` and `told` are as in `scored`."""
    with console.progress(f"evaluate {title}", "completions") if title else nullcontext(None) as advance:
        return evaluate(parts.model, parts.tokenizer, environments, config or parts.config.evaluation, seed=parts.config.seed,
                        max_new_tokens=parts.max_new_tokens, progress=advance, served=served, deployed=deployed,
                        share=served is not None or parts.config.launch.strategy not in PIECES, told=told)


def measure_both(parts: Parts, environments: list[LoadedEnvironment], router: Router | None, served: Served | None, *,
                 titles: bool = True, config: EvaluationConfig | None = None,
                 told: Callable[[str], Told | None] = lambda _: None) -> Results:
    """Evaluate the policy and the deployed model, which are the same if nothing was routed. The engine `served`, if there is one,
    gets the present weights first. `told` maps the name of a model to the function that is called with its first answers."""
    if served is not None:
        served.sync()
    found = {"policy": measure(parts, environments, served, title="policy" if titles else None, config=config,
                               told=told("policy"))}
    if router is None:
        return found | {"deployed": found["policy"]}
    with router.quarantine.ablated():
        return found | {"deployed": measure(parts, environments, served, deployed=True, config=config,
                                            title="deployed" if titles else None, told=told("deployed"))}


def curve(parts: Parts, environments: list[LoadedEnvironment], router: Router, served: Served | None, scales: Sequence[float],
          models: Results) -> Results:
    """The results for each of `scales`, by which the quarantine is multiplied, as {text of the scale: results}. `models` holds
    the results for the scales 0 (`deployed`) and 1 (`policy`), which are known already."""
    known, found = {0.0: models["deployed"], 1.0: models["policy"]}, Results()
    for scale in scales:
        if scale in known:
            found[f"{scale:g}"] = known[scale]
            continue
        with router.quarantine.scaled(scale):
            if served is not None:
                served.sync()
            found[f"{scale:g}"] = measure(parts, environments, served, title=f"scale {scale:g}")
    if served is not None:
        served.sync()
    return found


def measure_during(parts: Parts, router: Router | None, served: Served | None, step: int) -> dict[str, float]:
    """Every `evaluation.every` steps, evaluate the policy and the deployed model on every environment, with the same few tasks
    and random numbers each time. Returns the metrics of `step`; {} if no evaluation is due. The training state stays the same to
    the bit: weights, modes, random numbers."""
    settings = parts.config.evaluation
    if not settings.every or step % settings.every:
        return {}
    begin = time.perf_counter()
    config = dataclasses.replace(settings, samples=settings.during_samples)
    both = measure_both(parts, parts.environments, router, served, titles=False, config=config)
    if served is not None:
        served.show(deployed=False)
    found = {f"evaluation/{model}/{name}/{metric}": value
             for model, results in both.items()
             for name, means in results.items() for metric, value in means.items() if metric != "completions"}
    return found | {"time/evaluation_s": time.perf_counter() - begin}
