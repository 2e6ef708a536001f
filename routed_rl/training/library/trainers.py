"""The trainers that `import routed_rl` offers. They train as the trainers of the commands do, but take TRL's own arguments and a
subspace.

Not covered: several processes, rollouts by vLLM and weights of 4 bit, all of which the commands have; and images. Arguments that
ask for one of these are refused in one line.
"""

import copy
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from routed_rl.config import AUTO, MonitorConfig, RoutingConfig, SubspaceConfig
from routed_rl.errors import ConfigError, ModelError
from routed_rl.model.adapter import is_adapted
from routed_rl.model.weights import model_hash
from routed_rl.monitor import Blame, Monitor, Verdict, blame
from routed_rl.routing import Quarantine
from routed_rl.routing.adapted import NAME
from routed_rl.stopping import saving_on_sigterm
from routed_rl.subspace import Subspace
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.library.checks import (
    check_arguments,
    check_bases,
    check_kinds,
    check_monitor,
    check_rates,
    check_trainer_of,
    check_unchanged,
    groups_of,
)
from routed_rl.training.library.datasets import check_datasets, check_prompts, common_labels, environments_of, functions_of
from routed_rl.training.library.folder import LibraryFolder, check_place
from routed_rl.training.library.hub import check_repository
from routed_rl.training.library.labelled import LabelledRows
from routed_rl.training.library.messages import named_as_arguments
from routed_rl.training.library.model import GivenModel, name_of, path_of, route_given
from routed_rl.training.library.origin import check_origin
from routed_rl.training.library.processor import processor_of
from routed_rl.training.library.seams import LibrarySeams
from routed_rl.training.practice import check_practising, make_practice
from routed_rl.training.trainers import AssembledGRPOTrainer, AssembledRLOOTrainer
from routed_rl.training.watch import Watch

DEFAULT_MONITOR = MonitorConfig()
"""The settings of the monitor if a script gives none: all rules have their default limits, and none halts the training."""


class LibraryMixin(LibrarySeams):
    """Mixin that gives a trainer with routing the arguments of TRL's trainer and a few more. The constructor checks the
    arguments, routes the model and makes the monitor."""

    arguments_kind: type[Any]
    """The class of TRL's arguments."""
    theirs: type[Any]
    """The class of TRL's trainer."""
    _optimizer: Any = None
    """The optimizer that the newest training made by itself; None if it has made none."""

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, train_dataset: Any = None,
                 eval_dataset: Any = None, processing_class: Any = None, *, subspace: Subspace | None = None,
                 routing: RoutingConfig | None = None, monitor: MonitorConfig | None = DEFAULT_MONITOR,
                 environment_column: str | None = None, bases: SubspaceConfig | None = None,
                 freeze: list[str] | str | None = None, lean: bool = True, **trl: Any) -> None:
        """The arguments up to `processing_class` are TRL's, and those that are not named here go to TRL: callbacks, optimizers,
        peft_config (a `LoraConfig`), and so on. `model` is routed in place.

        `subspace`: a subspace of this model, see `extract_subspace`; not needed in mode `none`. `routing`: the settings of mode,
        quarantine and practice. `monitor`: the settings of the monitor; None for no monitor, so that no environment practises
        with `routing.practice.environments=auto`. `environment_column`: the column of the dataset that names the environment,
        as text or by a class label; None: all rows belong to one environment, `data`. `bases`: the settings `layout`,
        `drop_below` and `shared_rank` of the writers' bases. `freeze`: the groups of parameters that are not trained, as in
        `ModelConfig`; None: the default of `ModelConfig` if the model is routed, and no group otherwise. `lean`: whether to leave
        out of an update everything that does not change its gradient; with False TRL computes everything itself.
        """
        check_kinds(type(self), self.theirs, trl, args=(args, self.arguments_kind), routing=(routing, RoutingConfig),
                    monitor=(monitor, MonitorConfig), bases=(bases, SubspaceConfig))
        routing, model = routing or RoutingConfig(), str(model) if isinstance(model, Path) else model
        arguments = copy.copy(args) if args is not None else self.arguments_kind(f"{name_of(model).split('/')[-1]}-routed")
        check_arguments(arguments)
        check_trainer_of(routing, subspace, trl)
        check_monitor(monitor)
        check_bases(bases)
        with named_as_arguments(arguments):
            frozen = groups_of(freeze, routing)
        check_datasets(train_dataset, eval_dataset, arguments, trl)
        functions = functions_of(reward_funcs, train_dataset, eval_dataset, trl)
        names = environments_of(train_dataset, environment_column)
        labels = common_labels(train_dataset, eval_dataset, environment_column)
        check_practising(routing, names)
        if monitor is not None:
            monitor.check_names(names)
            monitor.check_halting()
        self.folder = run = LibraryFolder(arguments.output_dir)
        if subspace is not None and routing.mode != "none":
            self.origin = {"model_hash": subspace.provenance.model_hash}  # that of the model, or it is refused below
        given = GivenModel.load(model, trl.pop("peft_config", None), arguments)
        if routing.mode == "none" and (given.lora is not None or arguments.beta):  # else a checkpoint has all that is needed
            self.origin = {"model_hash": model_hash(given.plain)}
        given.check_optimizers(trl.get("optimizers"))
        if routing.mode != "none":
            check_rates((trl.get("optimizers") or [None])[0])
        processing_class = processor_of(processing_class, given.plain, arguments, given.revision)
        check_prompts(train_dataset, eval_dataset, processing_class, trl)
        if isinstance(model, str) and not any(isinstance(function, str) for function in functions):
            arguments.model_init_kwargs = None  # TRL would warn; it reads them for reward models that are given by name
        reference = copy.deepcopy(given.plain).eval() if arguments.beta and given.lora is None else None
        keep = monitor.completions if monitor else 0
        self.labelled = rows = LabelledRows(names, environment_column, functions, arguments.num_generations,
                                            CompletionFiles(run.completions if arguments.log_completions else None, keep), labels)
        waits, arguments.enable_jit_checkpoint = arguments.enable_jit_checkpoint, False  # transformers' own saves within steps
        decides = routing.practice.environments == AUTO
        watch = Watch(Monitor(monitor), run, decides=decides) if monitor is not None else None
        with named_as_arguments(arguments), given.as_it_was():
            learner, router = route_given(given, arguments, routing, subspace, names, axis=monitor.axis if monitor else None,
                                          bases=bases or SubspaceConfig(), frozen=frozen)
            super().__init__(learner, arguments, router=router, run=run, reward=rows, reference=reference, watch=watch,
                             practice=make_practice(routing, rows, watch) if router is not None else None,
                             train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=processing_class,
                             lean=lean, **trl)
        trainer: Any = self
        trainer.args.enable_jit_checkpoint = waits

    @property
    def quarantine(self) -> Quarantine | None:
        """The quarantine of the model; None in mode `none`. Inside `with trainer.quarantine.ablated(): ...` the model is the
        deployed model."""
        return self.router.quarantine if self.router is not None else None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The metrics of each step so far, which are also in `metrics.jsonl` in `args.output_dir`."""
        return self.metrics_file.rows()

    @property
    def halted(self) -> list[Verdict]:
        """The verdicts by which the monitor stopped the training, all on the last step that was trained; empty if the monitor has
        not stopped it."""
        return self.watch.halting if self.watch is not None else []

    def blame(self) -> Blame:
        """Say which environments have pulled towards the positive persona so far, by the evidence of all steps. The field `named`
        of the result lists their names."""
        return blame(self.rows, self.watch.monitor.config if self.watch is not None else MonitorConfig())

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train from the start, or go on from a checkpoint in `args.output_dir`, which is the newest one if
        `resume_from_checkpoint` is True. Further arguments are those of TRL's `train`. With `args.enable_jit_checkpoint`, SIGTERM
        lets the step end, and this returns after a checkpoint; a second SIGTERM ends it at once (Stopped). ModelError if the
        quarantine was removed, if this is called inside a block of `quarantine.ablated()`, `scaled()` or `kept()`, or if the
        model was cast to another dtype. ConfigError if the dataset has too few prompts for a step, or if `args.output_dir` or
        the dataset's environments are not those with which the trainer was made, or if `args.hub_private_repo` is set and the
        repository is public."""
        trainer: Any = self
        if self.quarantine is not None and not self.quarantine.is_on:
            raise ModelError("the quarantine was removed from the model, so nothing would be routed; make a new trainer")
        if self.quarantine is not None and self.quarantine.held:
            raise ModelError("trainer.train() is called inside quarantine.ablated(), scaled() or kept(), at whose end the "
                             "quarantine would lose what it has learned; leave that block first")
        for metrics in trainer._metrics.values():
            metrics.clear()  # those of a step that an exception has ended, when a script goes on with the same trainer
        check_unchanged(self)
        check_repository(trainer.args)
        if ours := trainer.optimizer is None or trainer.optimizer is self._optimizer:
            trainer.optimizer = None  # it is made anew, by the settings that `args` has now
        with self.folder.alone(), saving_on_sigterm() if trainer.args.enable_jit_checkpoint else nullcontext():
            start = self._begin(resume_from_checkpoint)
            try:
                with named_as_arguments(trainer.args):
                    found = super().train(start and str(start), *args, **kwargs)
            finally:
                self._optimizer = trainer.optimizer if ours else None
                if self.router is not None:
                    self.router.context.end_step()
        if not trainer.state.global_step:
            raise ConfigError("no step was made, because train_dataset gave fewer prompts than a generation takes, "
                              f"{trainer.args.generation_batch_size // trainer.num_generations}; give more rows")
        return found

    def _begin(self, resume_from_checkpoint: str | Path | bool | None) -> Path | None:
        """Prepare the folder of the run, and return the checkpoint from which training goes on; None if it begins."""
        trainer: Any = self
        if not resume_from_checkpoint:
            return self.folder.begin()
        start, halts = self.folder.begin_from(resume_from_checkpoint, trainer.args.max_steps, self._check_origin)
        if self.watch is not None:
            self.watch.replay(self.rows, halts)
        return start

    def _check_origin(self, checkpoint: Path) -> None:
        trainer: Any = self
        lora = getattr(trainer.model, "peft_config", {}).get(NAME)
        check_origin(checkpoint, self.router, (self.origin or {}).get("model_hash"), lora)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the deployed model, which stock transformers can read, and beside it `quarantine.safetensors`, into `output_dir`,
        or into `args.output_dir` if `output_dir` is None. In mode `none` there is no quarantine, and an older
        `quarantine.safetensors` in the folder is removed. ModelError if the model was loaded from this folder. RunFolderError if
        the folder is sealed, or holds an adapter that would be loaded instead of the model. ModelError inside
        `quarantine.scaled()` and `kept()`, because the quarantine there is not the one that was learned."""
        trainer: Any = self
        if self.quarantine is not None and self.quarantine.replaced:
            raise ModelError("save_model is called inside quarantine.scaled() or kept(), and would write a part of the "
                             "quarantine in place of what was learned; leave that block first")
        output_dir = os.path.expanduser(output_dir) if output_dir is not None else None
        folder, base = Path(output_dir or self.folder.path), path_of(trainer.accelerator.unwrap_model(trainer.model))
        if base and folder.is_dir() and folder.resolve() == Path(base).resolve():
            raise ModelError(f"save_model({str(folder)!r}) would overwrite the model from which the training began; give another "
                             "folder")
        if not _internal_call:
            check_place(folder, adapted=is_adapted(trainer.model))
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            self._save_beside(folder)


class RoutedGRPOTrainer(LibraryMixin, AssembledGRPOTrainer):
    """TRL's `GRPOTrainer`, in which the change of the weights is split at a subspace."""

    arguments_kind, theirs = GRPOConfig, GRPOTrainer


class RoutedRLOOTrainer(LibraryMixin, AssembledRLOOTrainer):
    """TRL's `RLOOTrainer`, in which the change of the weights is split at a subspace."""

    arguments_kind, theirs = RLOOConfig, RLOOTrainer
