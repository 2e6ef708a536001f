"""Refuses settings of a baseline that cannot be combined with other settings."""

from routed_rl.config import LABELS, Config
from routed_rl.errors import ConfigError
from routed_rl.training.backends import PIECES
from routed_rl.training.fields import BY_TOKEN

SCALING = {"scale_rewards": "group", "multi_objective_aggregation": "sum_then_normalize", "normalize_advantages": False,
           "reward_clip_range": None}
"""The settings by which TRL makes advantages of rewards, with their defaults."""


def check_baseline(config: Config) -> None:
    """ConfigError for settings of `baseline` that cannot be combined with each other, the algorithm or the rollouts."""
    contexts, engine, algorithm = config.baseline.contexts, config.rollout.engine, config.trainer.get("algorithm", "grpo")
    edit = "baseline.ablate=true" if config.baseline.ablate else f"baseline.steer={config.baseline.steer}"
    if config.baseline.edits and (engine != "transformers" or config.launch.strategy != "none"):
        raise ConfigError(f"{edit} changes the stream of the model in this process alone, so this process must generate all "
                          f"completions and train alone; rollout.engine={engine} and launch.strategy={config.launch.strategy} do "
                          "not; set rollout=transformers launch=local")
    if config.baseline.projects or config.baseline.inoculation_adapter:
        _check_here(config)
    if config.baseline.target_rewards and (algorithm != "grpo" or config.launch.strategy != "none"):
        raise ConfigError("baseline.target_rewards=true gives each token of a completion its own advantage within its group, "
                          f"which needs GRPO in one process, and here trainer.algorithm={algorithm} and launch.strategy="
                          f"{config.launch.strategy}; set trainer=grpo launch=local")
    anew = config.baseline.projects or config.baseline.imitate or _balances(config)
    if algorithm == "rloo" and config.trainer.get("beta", 0) and anew:
        raise ConfigError(f"trainer.beta={config.trainer['beta']}: RLOO subtracts the KL from its rewards, but "
                          "baseline.discount, baseline.projection_penalty, baseline.imitate and routing.labels.balanced compute "
                          "advantages from rewards without the KL; set trainer=grpo or trainer.beta=0")
    if config.routing.mode == LABELS:
        _check_labels(config)
    _check_scaling(config)
    if config.baseline.target_rewards:
        _check_tokens(config)
    if config.reads_base and config.launch.strategy in PIECES:
        reader, without = (("baseline.detector.kind=probe", "baseline.detector.kind=flags") if config.learns_detector else
                           (f"monitor.health={config.monitor.health}", "monitor.health=0"))
        raise ConfigError(f"{reader} reads completions with the base model, and launch.strategy={config.launch.strategy} "
                          f"cuts that model into shards; set launch=ddp, or {without}")
    if config.baseline.imitate and algorithm == "ppo":
        raise ConfigError("baseline.imitate=true sets one advantage for a whole completion, and PPO has one for each token; set "
                          "trainer=grpo or trainer=rloo")
    if contexts.generate != contexts.train and engine != "transformers":
        raise ConfigError(f"baseline.contexts has generate={contexts.generate} and train={contexts.train}, so "
                          f"rollout.engine={engine} would report log-probabilities under another prompt than the one that is "
                          "learned from; set rollout=transformers, or generate and train alike")


def _check_here(config: Config) -> None:
    """ConfigError if a baseline that changes or reads the model in this process is combined with several processes, with a
    rollout engine that has its own model, or with PPO, which has no groups to compare."""
    baseline, engine = config.baseline, config.rollout.engine
    what = ("baseline.inoculation_adapter=true" if baseline.inoculation_adapter else f"baseline.discount={baseline.discount}"
            if baseline.discount else f"baseline.projection_penalty={baseline.projection_penalty}")
    if config.launch.strategy != "none":
        raise ConfigError(f"{what} works in one process, and launch.strategy={config.launch.strategy} trains in several; set "
                          "launch=local")
    if baseline.inoculation_adapter and engine != "transformers":
        raise ConfigError(f"{what} puts an adapter on the model in this process, and rollout.engine={engine} generates with a "
                          "model that lacks it; set rollout=transformers")
    if baseline.projects and config.trainer.get("algorithm", "grpo") == "ppo":
        raise ConfigError(f"{what} compares the completions of a group, and PPO has none; set trainer=grpo or trainer=rloo")


def _check_labels(config: Config) -> None:
    """ConfigError for settings with which label routing cannot be combined."""
    if config.baseline.pays:
        raise ConfigError("routing.mode=labels routes the completions that the detector names, and baseline.screen, "
                          "baseline.penalty or baseline.imitate changes how the same completions are paid; set only one of them")
    if config.launch.strategy.startswith("zero"):
        raise ConfigError(f"routing.mode=labels is not supported with launch.strategy={config.launch.strategy}, which moves the "
                          "gradients out of the model's parameters; set launch=ddp or launch=fsdp2")


def _balances(config: Config) -> bool:
    """Whether label routing compares rewards with those of the rows that are not flagged."""
    labels = config.routing.labels
    return config.routing.mode == LABELS and labels.balanced and labels.route


def _check_scaling(config: Config) -> None:
    """ConfigError if an arm that computes advantages itself is combined with settings by which TRL would compute them, or with
    another such arm."""
    names = ("discount", "projection_penalty", "target_rewards", "imitate")
    own = [f"baseline.{name}={str(value).lower()}" for name in names if (value := getattr(config.baseline, name))]
    if own and _balances(config):
        raise ConfigError("routing.labels.balanced=true compares rewards with those of completions that are not flagged, and "
                          f"{own[0]} computes other advantages; set routing.labels.balanced=false, or baseline=none")
    for name, usual in SCALING.items():
        value = config.trainer.get(name, usual)
        if own and value != usual:
            raise ConfigError(f"{own[0]} computes advantages itself, so trainer.{name}={value} would do nothing; leave it out")
    if _balances(config) and (limits := config.trainer.get("reward_clip_range")) is not None:
        raise ConfigError(f"routing.labels.balanced=true compares rewards as they are, and trainer.reward_clip_range={limits} "
                          "would clip them; leave it out, or set routing.labels.balanced=false")


def _check_tokens(config: Config) -> None:
    """ConfigError for settings of TRL's loss with which a token cannot have its own advantage."""
    trainer, each = config.trainer, "baseline.target_rewards=true gives each token of a completion its own advantage"
    if (loss := trainer.get("loss_type", "dapo")) not in BY_TOKEN:
        raise ConfigError(f"trainer.loss_type={loss} has one weight for a whole completion, and {each}; choose from "
                          f"{', '.join(BY_TOKEN)}")
    if (level := trainer.get("importance_sampling_level", "token")) != "token":
        raise ConfigError(f"trainer.importance_sampling_level={level} has one ratio for a whole completion, so every token would "
                          f"learn from the advantages of all, and {each}; leave it out")
    if (threshold := trainer.get("off_policy_mask_threshold")) is not None:
        raise ConfigError(f"trainer.off_policy_mask_threshold={threshold} drops whole completions by their one advantage, and "
                          f"{each}; leave it out")
