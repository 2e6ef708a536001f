"""Settings of the LoRA that is trained if the model's own weights are frozen."""

from dataclasses import dataclass, field, fields
from typing import Any

from routed_rl.config.checks import check_finite, check_known
from routed_rl.errors import ConfigError

FASTER = 5.0
"""The learning rate of a LoRA is this many times that of full weights if the user sets none; see docs/decisions.md 94."""


@dataclass(kw_only=True, slots=True)
class AdapterConfig:
    kind: str = "none"
    """none: the weights are trained; lora: the weights are frozen and a LoRA on them is trained, in float32; qlora: as lora, with
    the frozen weights in 4 bit."""
    r: int = 16
    """Rank of the LoRA."""
    alpha: float | None = None
    """Scale of the LoRA: its product is multiplied by alpha / r. null for alpha = r, so that the product is multiplied by 1."""
    rslora: bool = False
    """Whether the LoRA's product is multiplied by alpha / sqrt(r) instead of alpha / r."""
    target_modules: Any = "all-linear"
    """Which modules get a LoRA: all-linear (all linear modules but the unembedding), or a list of names such as
    [q_proj, down_proj]."""
    path: str | None = None
    """Folder of a PEFT LoRA to start from, which is merged into the base model before a new LoRA is trained; null for none."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of `peft.LoraConfig`, by name: any of lora_dropout, exclude_modules, and init_lora_weights (true or
    gaussian). Fields that are not named have PEFT's defaults."""

    def __post_init__(self) -> None:
        check_known("model.adapter.kind", [self.kind], ("none", "lora", "qlora"))
        check_finite("model.adapter", self)
        self._check_read()
        if isinstance(self.r, bool) or self.r < 1:
            raise ConfigError(f"model.adapter.r must be a whole number >= 1, got {self.r}")
        if self.alpha is not None and self.alpha <= 0:
            raise ConfigError(f"model.adapter.alpha must be > 0 or null, got {self.alpha}")
        if self.four_bit and self.path is not None:
            raise ConfigError(f"model.adapter.path={self.path} cannot be merged into weights in 4 bit; merge it into full ones "
                              "(merge_and_unload, save_pretrained) and give that folder as model.path")
        names = self.target_modules
        if names != "all-linear" and not (isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names)):
            raise ConfigError(f"model.adapter.target_modules must be all-linear or a list of names such as [q_proj,down_proj], "
                              f"got {names!r}")

    def _check_read(self) -> None:
        """Raise ConfigError if a setting of the LoRA differs from its default although the weights are trained, so that the
        setting would do nothing."""
        plain = {each.name: each.default_factory() if callable(each.default_factory) else each.default for each in fields(self)}
        for name, default in plain.items():
            if not self.trains and name != "kind" and (value := getattr(self, name)) != default:
                raise ConfigError(f"model.adapter.{name}={value} does nothing with model.adapter.kind={self.kind}; leave it out, "
                                  "or train a LoRA: model.adapter=lora")

    @property
    def trains(self) -> bool:
        """Whether an adapter is trained instead of the weights."""
        return self.kind != "none"

    @property
    def four_bit(self) -> bool:
        """Whether the frozen weights are quantised when they are read."""
        return self.kind == "qlora"
