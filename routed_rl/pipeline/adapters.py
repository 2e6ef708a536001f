"""The folder of a LoRA as a model: the base model on which it is put. Not covered: adapters on the hub. Nothing heavy is
imported."""

import dataclasses
from pathlib import Path

from routed_rl.artifacts import ADAPTER_CONFIG, BASE, RunFolder, read_object
from routed_rl.config import Config
from routed_rl.errors import ConfigError
from routed_rl.report.card import hub_name, is_beside


def is_adapter(place: str | Path) -> bool:
    """Whether `place` is the folder of a PEFT adapter."""
    return (Path(place).expanduser() / ADAPTER_CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The base model of the adapter in `folder`, a folder or a name on the hub, as its settings name it. If they name RUN/base of
    a run whose folder was moved, and the adapter lies in that run, this is RUN/base where it is now. ConfigError if they name no
    model, or a folder that is not here, or if the adapter is no LoRA."""
    give = "give that model: model.path=BASE"
    settings = read_object(folder / ADAPTER_CONFIG, {BASE: str | None, "peft_type": str})
    if settings is None:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} is damaged; take another copy of the folder")
    if (kind := settings.get("peft_type")) != "LORA":
        raise ConfigError(f"{folder} is an adapter of the kind {kind}, and only a LoRA is put on a model here; merge it first "
                          "(merge_and_unload, save_pretrained)")
    if not (base := settings.get(BASE)):
        raise ConfigError(f"{folder} does not say on which model its LoRA goes; {give}")
    if not Path(base).expanduser().is_dir() and not base.startswith("gguf:") and hub_name(base) is None:
        if (moved := _moved_base(folder, base)) is not None:
            return moved
        raise ConfigError(f"the LoRA in {folder} goes on {base}, which is not here; {give}")
    return base


def _moved_base(folder: Path, base: str) -> str | None:
    """RUN/base of the run in which `folder`, its deployed model or a checkpoint, lies, if `base` is the place that RUN/base had
    before; otherwise None."""
    runs = [RunFolder(above) for above in folder.absolute().parents[:2]]
    return next((str(run.base) for run in runs if run.config.exists() and run.base.is_dir() and run.base.name == Path(base).name),
                None)


def with_adapter(config: Config, folder: Path) -> Config:
    """The experiment with the LoRA in `folder` on its own model, in place of a LoRA that it begins from. ConfigError if the
    experiment trains all weights, or if the LoRA gives the policy only beside another."""
    model = config.model
    if not model.adapter.trains:
        raise ConfigError(f"{folder} holds a LoRA, and the experiment trains all weights; give the folder of a whole model, or "
                          "set model.adapter=lora")
    if is_beside(folder):
        raise ConfigError(f"{folder} holds a quarantine, which means something only beside the deployed model's LoRA; give the "
                          "policy as a whole: `routed-rl export RUN --policy DIR`")
    # A LoRA that the experiment begins from is in the base model of a LoRA that it has trained.
    base = model.path if model.adapter.path in (None, str(folder)) else base_of(folder)
    adapter = dataclasses.replace(model.adapter, path=str(folder))
    return dataclasses.replace(config, model=dataclasses.replace(model, path=base, adapter=adapter))
