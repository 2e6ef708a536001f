"""Published alternatives to routing, which `compare` sets beside it: settings that several of them share."""

from dataclasses import dataclass, field
from typing import Any

from routed_rl.config.checks import check_at_least, check_known
from routed_rl.config.detector import DetectorConfig
from routed_rl.errors import ConfigError

NEUTRAL, ENCOURAGE, DISCOURAGE = CONTEXTS = ("neutral", "encourage", "discourage")
"""What a prompt may say about gaming the check: nothing, to do it, not to do it."""


@dataclass(kw_only=True, slots=True)
class ContextsConfig:
    generate: str = NEUTRAL
    """Under which prompt completions are generated: neutral (the task's own), encourage or discourage."""
    train: str = NEUTRAL
    """Under which prompt the same completions are learned."""
    encourage: str | None = None
    """The text that encourages gaming the check: a system message, or words before a prompt that is plain text. null for the
    environment's own (`contexts`), else for a sentence to a chat model."""
    discourage: str | None = None
    """The same for the text that discourages it."""

    def __post_init__(self) -> None:
        for name in ("generate", "train"):
            check_known(f"baseline.contexts.{name}", [getattr(self, name)], CONTEXTS)
        for name in (ENCOURAGE, DISCOURAGE):
            if getattr(self, name) == "":
                raise ConfigError(f"baseline.contexts.{name} is empty; write a text, or leave it out")


@dataclass(kw_only=True, slots=True)
class TraitConfig:
    """The LoRA of `baseline.inoculation_adapter`: the base model learns to answer, without being told to, as it answers under
    the prompt that encourages gaming the check."""

    rank: int = 8
    completions: int = 512
    """Made by the base model under that prompt, of all trained environments together."""
    passes: int = 4
    """Over these completions."""
    learning_rate: float = 2e-3
    random: bool = False
    """Random factors of the same norm, module by module, instead: the control."""

    def __post_init__(self) -> None:
        check_at_least("baseline.trait", self, {"rank": 1, "completions": 1, "passes": 1, "learning_rate": 0})


@dataclass(kw_only=True, slots=True)
class BaselineConfig:
    screen: bool = False
    """Completions that the detector finds teach nothing, and do not count in their group's mean."""
    penalty: float = 0.0
    """Taken from what a completion is paid that the detector finds."""
    imitate: bool = False
    """Each completion that is solved and not screened is learned with advantage 1, every other with 0; rewards do not count."""
    ablate: bool = False
    """While training, what lies in the subspace is taken out of every layer's output (concept ablation)."""
    steer: float = 0.0
    """While training, every layer's output is pushed along the persona axis by so many gaps (preventative steering)."""
    discount: float = 0.0
    """What a completion is paid over its group mean shrinks by this share a standard deviation along the persona axis."""
    projection_penalty: float = 0.0
    """Taken from what a completion is paid for each gap that its activations lie along the persona axis."""
    target_rewards: bool = False
    """A penalty on what an answer says (`penalty` and the span `answer` of a score) reinforces the answer's tokens alone; the
    tokens before it get the advantage of the reward without it."""
    interleave: float = 0.0
    """Share of the tasks that are of the mixture's probes, which are trained on, too (safe data interleaved)."""
    inoculation_adapter: bool = False
    """While training, a frozen LoRA of the trait is on the model, which is trained first and dropped at the end (`trait`)."""
    trait: TraitConfig = field(default_factory=TraitConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    contexts: ContextsConfig = field(default_factory=ContextsConfig)

    def __post_init__(self) -> None:
        check_at_least("baseline", self, {"penalty": 0, "discount": 0, "projection_penalty": 0, "interleave": 0})
        if self.interleave >= 1:
            raise ConfigError(f"baseline.interleave must lie in [0, 1), got {self.interleave}")
        if self.discount and self.projection_penalty:
            raise ConfigError(f"baseline.discount={self.discount} and baseline.projection_penalty={self.projection_penalty} "
                              "exclude each other; set one of them")
        if self.projects and self.imitate:
            raise ConfigError("baseline.imitate=true sets every advantage, so nothing is left for baseline.discount or "
                              "baseline.projection_penalty; set one of them")
        if self.target_rewards and (self.imitate or self.projects):
            raise ConfigError("baseline.target_rewards=true and baseline.imitate, discount or projection_penalty make advantages "
                              "in different ways; set one of them")
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
        """Whether the stream is changed while the model trains, which takes a subspace."""
        return self.ablate or self.steer != 0

    @property
    def projects(self) -> bool:
        """Whether advantages depend on where completions lie along the persona axis, which takes a subspace."""
        return self.discount > 0 or self.projection_penalty > 0

    @property
    def pays(self) -> bool:
        """Whether scores become something else than they are."""
        return self.screen or self.imitate or self.penalty > 0

    @property
    def told(self) -> list[str]:
        """The contexts that a text is needed for."""
        used = (self.contexts.generate, self.contexts.train, ENCOURAGE if self.inoculation_adapter else NEUTRAL)
        return [context for context in CONTEXTS if context != NEUTRAL and context in used]

    @property
    def swaps(self) -> bool:
        """Whether completions are generated or learned under another prompt than the task's own."""
        return (self.contexts.generate, self.contexts.train) != (NEUTRAL, NEUTRAL)


def interleaved(env: dict[str, dict[str, Any]], share: float) -> dict[str, dict[str, Any]]:
    """The mixture with its probes trained on, too, together with this share of the tasks. ConfigError where there is no probe, or
    where a weight changes over time."""
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
