"""Settings of the published alternatives to routing, with which `compare` measures routing."""

from dataclasses import dataclass, field
from typing import Any

from routed_rl.config.checks import check_at_least, check_known
from routed_rl.config.detector import DetectorConfig
from routed_rl.errors import ConfigError

NEUTRAL, ENCOURAGE, DISCOURAGE = CONTEXTS = ("neutral", "encourage", "discourage")
"""The contexts: the prompt says nothing about gaming the check (neutral), says to do it (encourage), or says not to do it
(discourage)."""


@dataclass(kw_only=True, slots=True)
class ContextsConfig:
    generate: str = NEUTRAL
    """Prompt under which completions are generated: neutral (the task's own), encourage or discourage."""
    train: str = NEUTRAL
    """Prompt under which the generated completions are learned: neutral (the task's own), encourage or discourage."""
    encourage: str | None = None
    """Text that encourages gaming the check. It is added as a system message, or put before a prompt that is plain text. null for
    the environment's own text (its attribute `contexts`), or, where it has none, for a built-in sentence to a chat model."""
    discourage: str | None = None
    """Text that discourages gaming the check. It is added as a system message, or put before a prompt that is plain text. null
    for the environment's own text (its attribute `contexts`), or, where it has none, for a built-in sentence to a chat model."""

    def __post_init__(self) -> None:
        for name in ("generate", "train"):
            check_known(f"baseline.contexts.{name}", [getattr(self, name)], CONTEXTS)
        for name in (ENCOURAGE, DISCOURAGE):
            if getattr(self, name) == "":
                raise ConfigError(f"baseline.contexts.{name} is empty; write a text, or leave it out")


@dataclass(kw_only=True, slots=True)
class TraitConfig:
    """Settings of the LoRA of `baseline.inoculation_adapter`. While this LoRA is on, the base model answers plain prompts as it
    otherwise answers under the prompt that encourages gaming the check."""

    rank: int = 8
    """Rank of the trait's LoRA on each linear module of the layers."""
    completions: int = 512
    """Number of completions from which the trait's LoRA is learned, for all trained environments together. The base model writes
    them under the prompt that encourages gaming the check."""
    passes: int = 4
    """Number of passes over the completions (see `completions`) while the trait's LoRA is learned."""
    learning_rate: float = 2e-3
    """Learning rate of AdamW while the trait's LoRA is learned."""
    random: bool = False
    """Whether the trait's LoRA is replaced, as a control, by a LoRA with random factors, whose product has the same norm at each
    module."""

    def __post_init__(self) -> None:
        check_at_least("baseline.trait", self, {"rank": 1, "completions": 1, "passes": 1, "learning_rate": 0})


@dataclass(kw_only=True, slots=True)
class BaselineConfig:
    screen: bool = False
    """Whether completions that the detector names are screened: they teach nothing and do not count in their group's mean."""
    penalty: float = 0.0
    """Amount that is subtracted from the reward of a completion that the detector names, in units of the reward; 0: none."""
    imitate: bool = False
    """Whether every completion that solves its task and is not screened is learned with advantage 1, and every other completion
    with advantage 0. Rewards then do not count."""
    ablate: bool = False
    """Whether the component of every layer's output that lies inside the subspace is removed during training (concept
    ablation)."""
    steer: float = 0.0
    """Distance by which every layer's output is moved along the persona axis during training, in gaps between the personas
    (preventative steering); 0: not at all."""
    discount: float = 0.0
    """Factor d of a discount on rewards. If a completion is paid more than its group's mean, the excess is multiplied by 1 - d z,
    at least 0, where z is the position of the completion's activations along the persona axis, in standard deviations from the
    mean of all completions of the generation. 0: no discount."""
    projection_penalty: float = 0.0
    """Amount that is subtracted from the reward of a completion, in units of the reward, for each gap between the personas by
    which its activations lie along the persona axis; 0: none."""
    target_rewards: bool = False
    """Whether the penalty that a score reports as its metric `penalty` acts only on the tokens of the final answer, which the
    score marks as the span `answer`. The tokens before the answer then get the advantage of the reward without that penalty. It
    has nothing to do with `baseline.penalty`."""
    interleave: float = 0.0
    """Share of the training tasks that come from the mixture's probe environments, which are then trained on too (interleaved
    safe data); 0: none."""
    inoculation_adapter: bool = False
    """Whether a frozen LoRA that shows the trait is on the model during training. It is trained before the run's first step, as
    `baseline.trait` says, and dropped at the end."""
    trait: TraitConfig = field(default_factory=TraitConfig)
    """How the LoRA of baseline.inoculation_adapter is trained."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    """The detector that names completions as bad, for every arm that uses labels."""
    contexts: ContextsConfig = field(default_factory=ContextsConfig)
    """Texts about gaming the check that are put into prompts."""

    def __post_init__(self) -> None:
        check_at_least("baseline", self, {"penalty": 0, "discount": 0, "projection_penalty": 0, "interleave": 0})
        if self.interleave >= 1:
            raise ConfigError(f"baseline.interleave must lie in [0, 1), got {self.interleave}")
        if self.discount and self.projection_penalty:
            raise ConfigError(f"baseline.discount={self.discount} and baseline.projection_penalty={self.projection_penalty} "
                              "exclude each other; set one of them")
        if self.projects and self.ablate:
            raise ConfigError("baseline.ablate=true takes the subspace out of the activations that baseline.discount and "
                              "baseline.projection_penalty measure along it; set one of them")
        if self.projects and self.imitate:
            raise ConfigError("baseline.imitate=true sets every advantage, so nothing is left for baseline.discount or "
                              "baseline.projection_penalty; set one of them")
        if self.target_rewards and (self.imitate or self.projects):
            raise ConfigError("baseline.target_rewards=true and baseline.imitate, discount or projection_penalty make advantages "
                              "in different ways; set one of them")
        if self.target_rewards and self.penalty:
            raise ConfigError("baseline.target_rewards=true keeps the penalty that scores report off the tokens before answers, "
                              f"and baseline.penalty={self.penalty} would be taken from them too; set one of them")
        if self.inoculation_adapter and (self.ablate or self.steer):
            raise ConfigError("baseline.inoculation_adapter=true and baseline.ablate or baseline.steer exclude each other; set "
                              "one of them")
        if self.screen and self.penalty:
            raise ConfigError(f"baseline.screen=true and baseline.penalty={self.penalty} exclude each other: nothing is paid for "
                              "a completion that is screened; set one of them")
        if self.imitate and self.penalty:
            raise ConfigError(f"baseline.imitate=true and baseline.penalty={self.penalty} exclude each other: what is imitated "
                              "is not paid; set one of them")

    @property
    def edits(self) -> bool:
        """Whether the stream is changed during training, which needs a subspace."""
        return self.ablate or self.steer != 0

    @property
    def projects(self) -> bool:
        """Whether advantages depend on where completions lie along the persona axis, which needs a subspace."""
        return self.discount > 0 or self.projection_penalty > 0

    @property
    def pays(self) -> bool:
        """Whether a detector changes the scores of the environments before training is paid by them."""
        return self.screen or self.imitate or self.penalty > 0

    @property
    def told(self) -> list[str]:
        """The contexts whose texts are put into prompts."""
        used = (self.contexts.generate, self.contexts.train, ENCOURAGE if self.inoculation_adapter else NEUTRAL)
        return [context for context in CONTEXTS if context != NEUTRAL and context in used]

    @property
    def swaps(self) -> bool:
        """Whether completions are generated or learned under another prompt than the task's own."""
        return (self.contexts.generate, self.contexts.train) != (NEUTRAL, NEUTRAL)


def interleaved(env: dict[str, dict[str, Any]], share: float) -> dict[str, dict[str, Any]]:
    """The mixture `env` in which the probe environments are trained on too: together they get `share` of the tasks. ConfigError
    if there is no probe environment, or if a weight changes over time."""
    probes = [name for name, settings in env.items() if isinstance(settings, dict) and settings.get("probe") is True]
    if not probes:
        raise ConfigError(f"baseline.interleave={share} needs a probe among the environments, to train on it as safe data; set "
                          "env.NAME.probe=true for one that scores what the model should keep")
    weights = {name: settings.get("weight", 1.0) for name, settings in env.items()
               if name not in probes and isinstance(settings, dict)}
    if changing := [name for name, weight in weights.items() if not isinstance(weight, (int, float))]:
        raise ConfigError(f"baseline.interleave={share} needs weights that stay, and env.{changing[0]}.weight="
                          f"{weights[changing[0]]} changes; give a number")
    each = share / (1 - share) * sum(weights.values()) / len(probes)
    return {name: settings | {"probe": False, "weight": each} if name in probes else settings for name, settings in env.items()}
