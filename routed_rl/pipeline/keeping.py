"""Chooses the share of an environment's part that is kept, for environments whose share is `auto`.

A part holds the changes that its environment needs, but also changes by which the environment resists the pull of others, so the
whole part may be too much. Each of `SHARES` is tried on evaluation tasks of the environment itself. The smallest share is taken
that pays almost as much as the best one: its mean reward is below that of the best share by at most one standard error, which is
that of the differences on the same tasks (the one-standard-error rule of Breiman et al., 1984). It must also pay at least as much
as the smallest of `SHARES`. The paid reward is known for every environment; no true score is read. Not covered: the best
combination of shares. While one share is chosen, parts with a fixed share are kept at that share, and the other parts that are
set to `auto` are left out.
"""

import dataclasses
from pathlib import Path
from statistics import fmean, stdev

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.envs import LoadedEnvironment
from routed_rl.evaluate import average, scored
from routed_rl.pipeline.build import Parts, load_parts
from routed_rl.pipeline.kept import Kept, decide, say, shares_of
from routed_rl.pipeline.measuring import measure
from routed_rl.pipeline.serving import at_checkpoint, serving
from routed_rl.pipeline.summary import Results
from routed_rl.rollout import Served
from routed_rl.routing import Router
from routed_rl.subspace import Subspace

SHARES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
SAMPLES = 256
"""Smallest number of tasks on which each share is tried."""
Paid = dict[float, list[float | None]]
"""For each share, the reward of each task; the tasks are the same for all shares. None for a task that could not be scored."""


def choose(parts: Parts, router: Router, served: Served | None, kept: dict[str, Kept]) -> None:
    """Choose the shares in `kept` that are still None, and show the reward at each share that was tried. The model in `parts` and
    the router must be in the state of the checkpoint whose parts are kept. Afterwards the engine `served` still has the weights
    of the last trial."""
    fixed = shares_of(kept)
    for loaded in parts.trained:
        if (one := kept.get(loaded.name)) is not None and one.share is None:
            paid = _try(parts, router, served, loaded, fixed)
            one.share, one.paid = best_share(paid), {f"{share:g}": average_paid(found) for share, found in paid.items()}
            rows = [[share, f"{mean:.3f}", "kept" if float(share) == one.share else ""] for share, mean in one.paid.items()]
            console.table(f"{loaded.label}: the mean reward of {len(paid[0.0])} tasks, by the share of its part that is kept",
                          ["share", "paid", ""], rows)


def choose_at(checkpoint: Path, run: RunFolder, config: Config, kept: dict[str, Kept]) -> None:
    """Load the model of a run at a checkpoint, and choose the shares in `kept` that are still None."""
    parts, subspace = load_parts(config), Subspace.load(run.subspace)
    with serving(parts, subspace) as served:
        if router := at_checkpoint(checkpoint, parts, run, subspace, served):
            choose(parts, router, served, kept)


def measure_kept(parts: Parts, environments: list[LoadedEnvironment], router: Router, served: Served | None,
                 kept: dict[str, Kept]) -> Results:
    """Choose the shares in `kept` that are still None, then evaluate the deployed model with these shares of the parts. Returns
    {} if `kept` is empty."""
    if not kept:
        return {}
    choose(parts, router, served, kept)
    say(kept)
    with router.quarantine.kept(shares_of(kept)):
        if served is not None:
            served.sync()
        found = {"kept": measure(parts, environments, served, title="kept")}
    if served is not None:
        served.sync()
    return found


def keep_at_end(parts: Parts, run: RunFolder, router: Router | None, served: Served | None) -> tuple[Results, dict[str, Kept]]:
    """At the end of a run, evaluate the deployed model with the shares of parts that the setting `keep` asks for. Returns the
    results and the decision about each part; both are empty if nothing is to be kept. A part against which there is an objection
    is not kept, because no user is there to insist on it."""
    if router is None or not (parts.config.keep and parts.config.discard):
        return {}, {}
    kept = decide(run, parts.config, run.require_checkpoint(), parts.config.keep)
    for one in kept.values():
        one.share = 0.0 if one.against else one.share
    return measure_kept(parts, parts.evaluated, router, served, kept), kept


def best_share(paid: Paid) -> float:
    """The smallest share whose mean reward is about as high as that of the best share, and at least as high as that of the
    smallest share in `paid`."""
    means = {share: average_paid(found) for share, found in sorted(paid.items())}
    best, least = max(means, key=lambda share: means[share]), means[min(means)]

    def is_as_good(share: float) -> bool:
        lost = [b - a for a, b in zip(paid[share], paid[best], strict=True) if a is not None and b is not None]
        return len(lost) > 1 and fmean(lost) <= stdev(lost) / len(lost)**0.5

    return next(share for share, mean in means.items() if share == best or (mean >= least and is_as_good(share)))


def average_paid(found: list[float | None]) -> float:
    return fmean(reward for reward in found if reward is not None)


def _try(parts: Parts, router: Router, served: Served | None, loaded: LoadedEnvironment, fixed: dict[str, float]) -> Paid:
    """Evaluate the model with each of `SHARES` of the part of `loaded`, and with the shares `fixed` of other parts. The tasks are
    drawn with another seed than those on which models are compared, because a share looks better than it is on the tasks by which
    it was chosen."""
    settings, found = parts.config.evaluation, Paid()
    config = dataclasses.replace(settings, samples=max(settings.samples, SAMPLES))
    with console.progress(f"keep {loaded.name}", "completions") as advance:
        for place, share in enumerate(SHARES):
            with router.quarantine.kept(fixed | {loaded.name: share}):
                if served is not None:
                    served.sync()
                scores = scored(parts.model, parts.tokenizer, [loaded], config, seed=parts.config.seed + 1,
                                max_new_tokens=parts.max_new_tokens, served=served,
                                progress=lambda done, total, place=place: advance(place * total + done, len(SHARES) * total))
            average(loaded.name, scores[loaded.name])  # raises if none could be scored
            found[share] = [score and score.reward for score in scores[loaded.name]]
    return found
