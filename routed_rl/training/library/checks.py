"""Checks the arguments of a library trainer, which is a trainer that `import routed_rl` offers to a script, before a model is
loaded or routed. Each error message is one line that also says what to change."""

import dataclasses
import inspect
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from routed_rl.config import LABELS, ModelConfig, MonitorConfig, RoutingConfig, SubspaceConfig, closest
from routed_rl.errors import ConfigError, ModelError
from routed_rl.extraction.library import OF_BASES
from routed_rl.model.lora import is_lora
from routed_rl.model.targets import Writer, decoder_layers
from routed_rl.model.weights import check_default_dtype, model_hash
from routed_rl.subspace import Subspace
from routed_rl.training.fields import STAYS
from routed_rl.training.library.datasets import environments_of, labels_of
from routed_rl.training.library.messages import named_as_arguments

ALONE = {
    "use_vllm": "its engine would serve the deployed model; the command trains with vLLM: routed-rl train rollout=vllm_colocate",
    "fsdp": "one process holds the whole model; the command cuts it up: routed-rl train launch=fsdp2",
    "deepspeed": "one process holds the whole model; the command cuts it up: routed-rl train launch=zero2",
    "remove_unused_columns": "it drops the column that names the environment",
    "push_to_hub": "it would upload the checkpoints, with the quarantine in them; call trainer.push_to_hub() after the training",
    "bf16_full_eval": "an evaluation would cast the weights themselves; set bf16=True, which computes in bfloat16",
    "fp16_full_eval": "an evaluation would cast the weights themselves; set bf16=True, which computes in bfloat16",
    "load_best_model_at_end": "it would put the weights of one step beside the quarantine of another; set "
                              "args.metric_for_best_model, and trainer.state.best_model_checkpoint names the best one, which is "
                              "kept",
}
"""The fields of TRL's arguments that the commands do not refuse, or for another reason; each with the reason of the library."""
SHARED = ("fp16", "use_liger_kernel", "torch_compile", "use_transformers_continuous_batching", "sync_ref_model",
          "save_only_model", "ignore_data_skip", "save_on_each_node", "auto_find_batch_size")
"""The fields of TRL's arguments that the library refuses just as the commands do; `STAYS` has the reasons. The library leaves the
other fields of `STAYS` to TRL."""
COMPILED = next(why for why, names in STAYS.items() if "torch_compile" in names.split())
"""The reason for which no compiled model is trained."""
OF_TRL = ("tools", "environment_factory", "rollout_func")


def check_kinds(trainer: type[Any], theirs: type[Any], trl: dict[str, Any], **given: tuple[Any, type[Any]]) -> None:
    """ConfigError for an argument that the class `trainer` does not take, or whose value has the wrong class. `theirs`: the class
    of TRL's trainer. `trl`: the arguments that are passed on to `theirs`. `given`: for each further argument, its value (None: it
    was left out) and the class that the value must have."""
    takes = [*inspect.signature(theirs).parameters]
    for name in [name for name in trl if name not in takes]:
        near = closest(name, [*takes, *inspect.signature(trainer).parameters])
        raise ConfigError(f"{trainer.__name__} has no argument {name}; " + (f"did you mean {near}?" if near else "leave it out"))
    for name, (value, kind) in given.items():
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{name}={value!r:.60} is a {type(value).__name__}; write {name}={kind.__name__}(...)")


def check_arguments(arguments: Any) -> None:
    """ConfigError if a field of TRL's arguments has a value that is not supported. The same values are refused in every routing
    mode, so that runs in different modes can be compared."""
    check_default_dtype()
    reasons = {name: why for why, names in STAYS.items() for name in names.split()}
    with named_as_arguments(arguments):
        for name in (*ALONE, *SHARED):
            if value := getattr(arguments, name, None):
                raise ConfigError(f"args.{name}={value} is not supported: {ALONE.get(name) or reasons[name]}; leave it out")
    # What `accelerate launch` has set in the process' environment is in no field of the arguments.
    if (precision := arguments.mixed_precision) not in ("no", "bf16"):
        raise ConfigError(f"accelerate is set to mixed_precision={precision}, which scales the gradients that routing reads; set "
                          "args.bf16=True, or start the script without `accelerate launch`")
    if getattr(arguments, "deepspeed_plugin", None) is not None:
        raise ConfigError(f"accelerate is set to DeepSpeed, which is not supported: {ALONE['deepspeed']}; start the script "
                          "without `accelerate launch`")
    if arguments.world_size > 1:
        raise ConfigError(f"the library trains in one process, and there are {arguments.world_size}; start it without a "
                          "launcher, or use the command: routed-rl train launch=ddp")


def check_trainer_of(routing: RoutingConfig, subspace: Subspace | None, trl: dict[str, Any]) -> None:
    """ConfigError for arguments of a library trainer that contradict each other or are not supported. `trl`: the arguments that
    are passed on to TRL's trainer."""
    if trl.get("quantization_config") is not None:
        raise ConfigError("quantization_config is not supported: weights of 4 or 8 bits are not routed yet; leave it out, and "
                          "give a model in float32, or in bfloat16 with a peft_config")
    if (peft := trl.get("peft_config")) is not None and not is_lora(peft):
        raise ConfigError(f"peft_config={peft!r:.60} is not supported; give a peft.LoraConfig")
    if routing.mode == LABELS:
        raise ConfigError("routing.mode=labels needs the flags that environments report, and reward functions report none; "
                          "train by `routed-rl train routing=labels`, or give another mode")
    if routing.mode != "none" and not isinstance(subspace, Subspace):
        given = "there is none" if subspace is None else f"got {subspace!r:.60}"
        raise ConfigError(f"routing.mode={routing.mode} needs a subspace, and {given}; give subspace=extract_subspace(model, "
                          "tokenizer, prompts=FILE) or Subspace.load(FOLDER), or routing=RoutingConfig(mode=\"none\")")
    if routing.practises and (used := [name for name in OF_TRL if trl.get(name)]):
        raise ConfigError(f"{used[0]} makes rollouts of its own, in which no row can practise; set "
                          "routing=RoutingConfig(practice=PracticeConfig(share=0))")


def check_bases(bases: SubspaceConfig | None) -> None:
    """ConfigError if a field of `bases` that routing does not read has another value than its default."""
    usual = SubspaceConfig()
    for name in [each.name for each in dataclasses.fields(usual)] if bases is not None else []:
        if name not in OF_BASES and (value := getattr(bases, name)) != getattr(usual, name):
            raise ConfigError(f"bases.{name}={value} does nothing here, where {', '.join(OF_BASES)} are read; give it to "
                              f"extract_subspace({name}=...)")


def check_monitor(monitor: MonitorConfig | None) -> None:
    """ConfigError for settings of the monitor that the library does not support; None stands for no monitor."""
    if monitor is not None and monitor.health:
        raise ConfigError(f"monitor.health={monitor.health} needs the flags that environments report, and reward functions "
                          "report none; leave it at 0, or train by `routed-rl train monitor.health=N`")
    if monitor is not None and monitor.gap.action == "halt":
        raise ConfigError("monitor.gap.action=halt compares the paid reward with the true score, and reward functions report "
                          "none; let another rule halt, or train by `routed-rl train` with environments that report it")


def groups_of(freeze: list[str] | str | None, routing: RoutingConfig) -> list[str]:
    """Return the groups of parameters that are not trained. `freeze`: these groups, or the name of a single one; None: the
    default of `ModelConfig` if the model is routed, and no group otherwise. ConfigError for an unknown group."""
    if freeze is None:
        return ModelConfig().freeze if routing.mode != "none" else []
    return ModelConfig(freeze=[freeze] if isinstance(freeze, str) else list(freeze)).freeze


def check_unrouted(model: PreTrainedModel, name: str) -> None:
    """ModelError if the model is routed already. `name`: the name of the model in messages."""
    if any(hasattr(module, "routed_target") for module in model.modules()):
        raise ModelError(f"{name} is routed by another trainer; call its quarantine.remove(), or load the model again")


def check_not_compiled(model: torch.nn.Module, name: str) -> None:
    """ModelError if `torch.nn.Module.compile` was called on the model or on one of its modules. `name`: the name of the model in
    messages."""
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
        raise ModelError(f"{name} is compiled, and {COMPILED}; load it again, without compile()")


def check_one_device(model: PreTrainedModel, name: str, writers: list[Writer]) -> None:
    """ModelError if accelerate has divided the model among devices, as `device_map` asks for, or has put a forward of its own
    before that of a writer, which would then not be routed. `name`: the name of the model in messages."""
    devices = sorted({str(device) for device in getattr(model, "hf_device_map", {}).values()})
    hooked = [writer.name for writer in writers if "forward" in vars(writer.module)]
    if len(devices) > 1 or hooked:
        how = f"is divided among the devices {', '.join(devices)}" if len(devices) > 1 else f"has a hook on {hooked[0]}"
        raise ModelError(f"{name} {how}, as device_map does it, and a model is routed on one device, without hooks; load it "
                         "without device_map")


def check_unchanged(trainer: Any) -> None:
    """Before a training, ConfigError if a script has set `trainer.args.output_dir` or `trainer.train_dataset` to what does not
    fit the trainer that was made, or torch's default dtype to another than float32, or if this thread cannot wait for the signal
    that `args` name. ModelError if it has compiled the model, or has cast what is trained to another dtype."""
    check_default_dtype()
    if trainer.args.enable_jit_checkpoint and threading.current_thread() is not threading.main_thread():
        raise ConfigError("args.enable_jit_checkpoint=True waits for SIGTERM, which only the main thread of a process can do; "
                          "call trainer.train() there, or leave it out")
    was, now = trainer.folder.path.absolute(), Path(trainer.args.output_dir).expanduser().absolute()
    if was != now:
        raise ConfigError(f"trainer.args.output_dir={now} was set after the trainer was made, whose run is in {was}; make a new "
                          "trainer with the other folder")
    check_not_compiled(trainer.model, "trainer.model")
    known = trainer.labelled.names
    if new := [each for each in environments_of(trainer.train_dataset, trainer.labelled.column) if each not in known]:
        raise ConfigError(f"trainer.train_dataset has the environment {new[0]}, and the trainer was made for {', '.join(known)}; "
                          "make a new trainer with this dataset")
    if (labels := labels_of(trainer.train_dataset, trainer.labelled.column)) not in (None, trainer.labelled.labels):
        raise ConfigError(f"trainer.train_dataset has the class labels {', '.join(labels or [])}, and the trainer was made with "
                          f"{', '.join(trainer.labelled.labels or ['none'])}; make a new trainer with this dataset")
    if trainer.router is not None:
        check_rates(trainer.optimizer)
    for name, parameter in trainer.model.named_parameters() if trainer.router is not None else ():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ModelError(f"trainer.model was cast after the trainer was made: {name} is in "
                             f"{str(parameter.dtype).removeprefix('torch.')}, and what is trained must be in float32; call "
                             "trainer.model.float()")


def check_rates(optimizer: Any) -> None:
    """ConfigError if a group of parameters of an optimizer has no learning rate. None: there is no optimizer yet."""
    if optimizer is not None and any(group.get("lr") is None for group in optimizer.param_groups):
        raise ConfigError(f"optimizers has a {type(optimizer).__name__} without a learning rate (lr=None), from which the "
                          "quarantine takes its pace; give it one, such as Adafactor(model.parameters(), lr=1e-3, "
                          "scale_parameter=False, relative_step=False)")


def check_subspace(model: PreTrainedModel, name: str, subspace: Subspace) -> None:
    """SubspaceError if the subspace was extracted from another model. `name`: the name of the model in messages."""
    subspace.check_model(model=name, model_hash=model_hash(model), width=model.config.get_text_config().hidden_size,
                         layers=len(decoder_layers(model)))
