"""A callback by which a routed trainer acts at fixed points of each step. transformers calls it at the same points with every
backend."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from routed_rl.ranks import RANKS
from routed_rl.stopping import STOP


class RoutingCallback(TrainerCallback):
    """Calls methods of `trainer`, a `RoutedTrainerMixin`, at the start of a step, before and after the optimizer's step, and at
    the end of the step. Before the first step it makes a run that goes on log, evaluate and save as often as its settings say."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # transformers takes these intervals from the checkpoint, although the settings may have changed since.
        state.compute_steps(args, state.max_steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.edit is not None:
            self.trainer.edit.on()
        if self.trainer.served is not None:
            self.trainer.served.rest()  # an evaluation, or the check before training, may have woken it
        self.trainer.begin_routing(state.global_step)

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.finite.step(state.global_step + 1)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.step_routing(state.global_step)
        if self.trainer.edit is not None:
            self.trainer.edit.off()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.evaluator is not None:
            self.trainer.step_metrics |= self.trainer.evaluator(state.global_step)
        # The default flow callback runs first and has decided by now whether TRL logs this step.
        if not control.should_log:
            self.trainer.write_metrics(self.trainer.step_metrics)
        self.trainer.stopped = max(RANKS.gather(STOP.asked or 0))
        if self.trainer.stopped:
            control.should_save = control.should_training_stop = True
