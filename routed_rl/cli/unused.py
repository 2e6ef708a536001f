"""Refuses options and settings that would do nothing in a comparison or a sweep, before anything heavy is imported."""

from argparse import Namespace

from routed_rl.cli.compose import compose
from routed_rl.config import SweepConfig
from routed_rl.errors import ConfigError
from routed_rl.multirun.arms import ARMS, DETECTING, ROUTED, sets

DETECTOR = "baseline.detector."


def refuse_unused_detector(given: Namespace, detector: list[str], arms: list[str]) -> None:
    """Raise ConfigError for a setting of --detector that no run of `compare` reads. `detector`: the settings as KEY=VALUE."""
    of_detector = [f"{DETECTOR}{text}" for text in detector]
    configs = {arm: compose([*given.overrides, *of_detector, *ARMS[arm]]) for arm in arms if arm in ARMS} if detector else {}
    for text in detector:
        key = text.partition("=")[0]
        if key == "flags" and given.relearn is not None and given.flag is None:
            continue  # the attacks count these flags
        if any(key in config.read_of_detector and not sets(arm, f"{DETECTOR}{key}") for arm, config in configs.items()):
            continue
        if asking := next((config for arm, config in configs.items() if config.asks_detector
                           and not sets(arm, f"{DETECTOR}kind")), None):
            kind = asking.baseline.detector.kind
            raise ConfigError(f"--detector {text} does nothing with kind={kind}; leave {key} out, or set --detector kind="
                              f"{'flags' if kind == 'probe' else 'probe'}")
        using = [arm for arm in DETECTING if not sets(arm, f"{DETECTOR}{key}")]
        raise ConfigError(f"--detector {text} does nothing, because none of --arms {','.join(arms)} reads it; add one of "
                          f"{', '.join(using)} to --arms, or leave --detector {text} out")


def ranks_to_run(given: Namespace, arms: list[str]) -> str:
    """The value of --ranks, or its default. Raises ConfigError if it was given and no arm of `compare` runs at ranks."""
    if given.ranks and ROUTED not in arms:
        raise ConfigError(f"--ranks {given.ranks} does nothing, because it is for the arm {ROUTED} and --arms is "
                          f"{','.join(arms)}; add {ROUTED} to --arms, or leave --ranks out")
    return "1,3,8" if given.ranks is None else given.ranks


def refuse_unused_sweep(typed: list[str], settings: SweepConfig) -> None:
    """Raise ConfigError for a setting among `typed` that says something about trials which `settings` do not make."""
    unused = {"trials": settings.method == "grid" and "with sweep=grid, which tries every combination; set sweep=optuna",
              "direction": not settings.objectives and "without an objective; set sweep.objective=models.deployed.ENV.solve",
              **dict.fromkeys(("prune.after_trials", "prune.after_steps"), settings.prune.metric is None
                              and "where no trial ends early; set sweep.prune.metric=NAME")}
    for text in typed:
        if why := unused.get(text.partition("=")[0].lstrip("+").removeprefix("sweep.")):
            raise ConfigError(f"{text} does nothing {why}, or leave it out")
