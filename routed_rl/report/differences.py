"""Sentences on the changes by training and on the cost of discarding the quarantine, for the last line of a run and for its
page."""

from collections.abc import Mapping

from routed_rl.report.headline import Flags, is_flag
from routed_rl.report.shares import chance, difference_interval
from routed_rl.tracking import MODELS

SMALLEST = 0.005
"""A smaller difference than this is reported as none, because two decimals are shown."""

Results = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Maps a model to {environment: {metric: mean}}."""


def differences(results: Results, mode: str, labels: Mapping[str, str] | None = None, flags: Flags = None) -> str:
    """A sentence on the flag that rose most from the base model to the policy, with its value in the deployed model. `mode` is
    the mode of routing. `labels` maps environments to their names for people, and `flags` to the names of their flags."""
    names = labels or {}
    if not (risen := _risen(results, flags)):
        known = any("solve" in means for found in results.values() for means in found.values())
        return f"no environment reports a flag, so only reward{' and solve' if known else ''} can be compared"
    env, flag, means = risen
    if means["policy"] - means["base"] < SMALLEST:
        known = ", ".join(dict.fromkeys(flag for _, flag, _ in _flags(results, flags)))
        return f"training raised no flag ({known}) in any environment"
    said = f"{flag} in {names.get(env, env)}{_chance(results, env, means, 'policy', 'base')}: "
    if not has_quarantine(mode):
        return f"{said}the trained model {means['policy']:.2f}, base {means['base']:.2f}"
    return f"{said}the policy {means['policy']:.2f}, the deployed model {means['deployed']:.2f}, base {means['base']:.2f}"


def cost(results: Results, mode: str, labels: Mapping[str, str] | None = None) -> str:
    """A sentence on the environment in which discarding the quarantine lowers `solve`, the true score, the most. It is empty if
    there is no quarantine to discard, or no `solve`. The parameters are those of `differences`."""
    if not has_quarantine(mode):
        return ""
    if (env := costliest(results)) is None:
        return ""
    solved = {model: results[model][env]["solve"] for model in ("policy", "deployed")}
    if (lost := solved["policy"] - solved["deployed"]) < SMALLEST:
        return "discarding the quarantine costs no solve in any environment"
    told = _chance(results, env, solved, "policy", "deployed")
    return (f"discarding the quarantine costs {lost:.2f} of solve in {(labels or {}).get(env, env)}{told} (the policy "
            f"{solved['policy']:.2f}, the deployed model {solved['deployed']:.2f})")


def costliest(results: Results) -> str | None:
    """The environment in which discarding the quarantine lowers `solve`, the true score, the most; None if no environment has a
    `solve` of both the policy and the deployed model."""
    policy, deployed = (results.get(model, {}) for model in ("policy", "deployed"))
    lost = {env: means["solve"] - deployed[env]["solve"] for env, means in policy.items()
            if "solve" in means and "solve" in deployed.get(env, {})}
    return max(lost, key=lambda env: lost[env], default=None)


def kept_words(shares: Mapping[str, float], labels: Mapping[str, str] | None = None) -> str:
    """The kept shares in words, such as "0.5 of the part of sums"; empty if nothing is kept. `labels` maps environments to their
    names for people."""
    return " and ".join(f"{share:g} of the part of {(labels or {}).get(env, env)}" for env, share in shares.items() if share)


def keeping(results: Results, shares: Mapping[str, float], labels: Mapping[str, str] | None = None, flags: Flags = None) -> str:
    """A sentence on the `shares` of environments' parts that are kept, and on how they change the deployed model: its `solve` in
    these environments (`reward` if `solve` is not known), and the flag that training raised most. Empty without `shares`."""
    if not shares:
        return ""
    names = labels or {}
    if not (words := kept_words(shares, labels)):
        return f"nothing is kept of the part of {' or '.join(names.get(env, env) for env in shares)}"
    told = [(env, "solve" if "solve" in results["deployed"][env] else "reward") for env, share in shares.items()
            if share and env in _everywhere(results)]
    told += [(risen[0], risen[1])] if (risen := _risen(results, flags)) else []
    return f"{words} is kept: " + ", ".join(
        f"{metric} in {names.get(env, env)} {results['kept'][env].get(metric, 0.0):.2f} with it, "
        f"{results['deployed'][env].get(metric, 0.0):.2f} without" for env, metric in told)


def not_scored(results: Results, labels: Mapping[str, str] | None = None) -> list[str]:
    """A line for each model and environment in which completions could not be scored. Such completions are in no mean."""
    return [f"{means['failures']:.0f} of {means['completions']:.0f} completions in {(labels or {}).get(env, env)} could not be "
            f"scored ({model})" for model, found in results.items() for env, means in found.items() if means.get("failures")]


def has_quarantine(mode: str) -> bool:
    """Whether a run in this mode of routing ends with a quarantine to discard. In `erase` the quarantine stays empty."""
    return mode in ("route", "observe", "labels")


def _chance(results: Results, env: str, means: Mapping[str, float], higher: str, lower: str) -> str:
    """Words that say that the difference between the models `higher` and `lower` may be chance. `means` maps each model to its
    mean of a metric in the environment `env`. Empty if the 95 % interval of the difference is above 0, if the number of
    completions is not known, or if a mean is no share."""
    counts = {model: results[model][env].get("completions", 0) - results[model][env].get("failures", 0)
              for model in (higher, lower)}
    if min(counts.values()) < 1 or any(not 0 <= means[model] <= 1 for model in counts):
        return ""
    return chance(difference_interval(means[higher], counts[higher], means[lower], counts[lower])[0])


def _everywhere(results: Results) -> list[str]:
    """Environments on which all models were evaluated."""
    found = [results.get(model, {}) for model in MODELS]
    return [env for env in found[0] if all(env in each for each in found)]


def _risen(results: Results, flags: Flags) -> tuple[str, str, dict[str, float]] | None:
    """(environment, flag, mean by model) for the flag that rose most from the base model to the policy; None if there is no
    flag."""
    return max(_flags(results, flags), key=lambda each: each[2]["policy"] - each[2]["base"], default=None)


def _flags(results: Results, flags: Flags) -> list[tuple[str, str, dict[str, float]]]:
    """(environment, flag, mean by model) for every flag. An environment may report a flag only when it occurs, so the mean is 0
    for a model whose evaluation does not report the flag. Flags with a mean outside of [0, 1] are left out."""
    named = dict.fromkeys((env, flag) for env in _everywhere(results) for model in MODELS for flag in results[model][env]
                          if is_flag(env, flag, flags))
    found = [(env, flag, {model: results[model][env].get(flag, 0.0) for model in MODELS}) for env, flag in named]
    return [each for each in found if all(0 <= value <= 1 for value in each[2].values())]
