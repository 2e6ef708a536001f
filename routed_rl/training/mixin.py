"""The routed part of a TRL trainer, as a mixin: its constructor and its rollouts. The base classes have the rest, such as
`StepMixin`, which learns from the rollouts. All override methods of TRL's trainers and copy none, so they fit every trainer that
has GRPO's method names."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

from routed_rl.artifacts import RunFolder
from routed_rl.model.prompts import decoding_whole, encode_prompts
from routed_rl.rollout import ParityCheck, Served
from routed_rl.routing import Router
from routed_rl.tracking import MetricsFile
from routed_rl.training.advantages import Advantages
from routed_rl.training.backends import SHARED, check_alike, say_what_is_used, take_one_gpu
from routed_rl.training.baselines import ContextsMixin, PromptContexts, StreamEdit, TraitAdapter
from routed_rl.training.callback import RoutingCallback
from routed_rl.training.copies import make_copyable
from routed_rl.training.episodes import rollout_function
from routed_rl.training.finite import FiniteCheck
from routed_rl.training.health import Health
from routed_rl.training.lean import LeanMixin
from routed_rl.training.practice import Practice, PractisingMixin
from routed_rl.training.reference import use_base_model, use_reference
from routed_rl.training.rows import Rows
from routed_rl.training.saving import SavingMixin
from routed_rl.training.step import ALIKE, StepMixin
from routed_rl.training.tasks import RewardFunction
from routed_rl.training.vllm_rollouts import use_engine
from routed_rl.training.watch import Watch


class RoutedTrainerMixin(StepMixin, ContextsMixin, PractisingMixin, LeanMixin, SavingMixin):
    """Mixin for a TRL trainer class; it must come before that class. With `router=None` (mode `none`) the weights become those
    that TRL's trainer gives: bit for bit with `lean=False`, otherwise up to rounding."""

    served: Served | None = None
    """The engine that makes the rollouts; None if the trainer's own model makes them, or an engine that TRL has started."""
    prints = False
    """Whether transformers' `PrinterCallback` stays on the trainer; it prints each step's logs when the progress bar is off."""

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, *, router: Router | None, run: RunFolder,
                 reward: Rows, reference: PreTrainedModel | None = None, watch: Watch | None = None,
                 served: Served | None = None, parity: ParityCheck | None = None, practice: Practice | None = None,
                 contexts: PromptContexts | None = None, edit: StreamEdit | TraitAdapter | None = None,
                 advantages: Advantages | None = None, health: Health | None = None,
                 evaluator: Callable[[int], dict[str, float]] | None = None,
                 listener: Callable[[dict[str, Any]], None] | None = None, strategy: str = "none", lean: bool = True,
                 ahead: bool = False, **kwargs: Any) -> None:
        """`args` is copied. `run`: the folder of the run. `reward`: knows the environment, the task and the reward of each row,
        see `Rows`. `reference`: the model of the KL term, needed if `args.beta` is not 0 and the model has no LoRA. `watch`: runs
        the monitor.

        `served`: the engine that makes the rollouts, whose log-probabilities `parity` compares with the trainer's. `practice`:
        chooses the groups that practise, and needs a router. `contexts`: puts prompts under a context for generating and for
        learning. `edit`: a temporary change of the residual stream, which is on from a step's first rollout to its last backward
        pass. `advantages`: replaces TRL's advantages. `health`: compares the policy with the base model. Each of these may be
        None.

        `evaluator`: maps the number of a step to the metrics of the evaluation that is due after the step. `listener`: is called
        with each row of the metrics. `strategy`: the value of `launch.strategy`. `lean`: the value of `trainer.lean`, see
        `LeanMixin`. `ahead`: whether `served` generates one generation ahead. `kwargs`: further arguments of TRL's trainer.
        """
        self.strategy, self.shared, self.evaluator = strategy, strategy in SHARED, evaluator
        self.lean = lean and not args.neftune_noise_alpha  # whose noise depends on how long a row is with its padding
        self.router, self.run, self.reward, self.watch, self.practice = router, run, reward, watch, practice
        self.contexts, self.edit, self.advantages, self.health = contexts, edit, advantages, health
        if router is not None or edit is not None:  # a router books what each row does at the states of its prompt
            self.shares_prompts = False
        self.metrics_file = MetricsFile(run.metrics, listener)
        names = router.quarantine.environments if router is not None else reward.names
        self.finite = FiniteCheck(run, router, names)
        self.scored_tasks: list[int] | None = None
        """The id of the task of each row that is generated next; None if the rows are turns of episodes."""
        self.step_metrics, self.rollout_metrics = {}, {}
        self._begin_records()
        self.stopped = 0
        """The number of the signal by which the process was told to end the training early; 0 if there was no signal."""
        check_alike(reward.names)
        arguments: Any = copy.copy(args)
        say_what_is_used(model, arguments)
        take_one_gpu(arguments)
        beta, arguments.beta = arguments.beta, 0.0  # otherwise TRL would load whatever the model's config names once more
        super().__init__(model=model, args=arguments, reward_funcs=reward.functions, **kwargs)  # pyright: ignore[reportCallIssue]
        if not self.prints:
            self.remove_callback(PrinterCallback)  # pyright: ignore[reportAttributeAccessIssue]
        self.add_callback(RoutingCallback(self))  # pyright: ignore[reportAttributeAccessIssue]
        adapters = getattr(self.model, "peft_config", {})  # pyright: ignore[reportAttributeAccessIssue]
        if "ref" in adapters:  # the adapter with which RLOO would compare
            self.model.delete_adapter("ref")  # pyright: ignore[reportAttributeAccessIssue]
        if beta and adapters:
            use_base_model(self, beta)
        elif beta:
            assert reference is not None, f"beta={beta} needs a reference model"
            use_reference(self, reference, beta)
        make_copyable(self.model)  # pyright: ignore[reportAttributeAccessIssue]
        if served is not None and parity is not None:
            use_engine(self, served, parity, ahead=ahead)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._choose_rollouts(inputs)
        tasks = self.reward.tasks(inputs)
        self.scored_tasks = tasks if getattr(self, "rollout_func", None) is None else None
        chosen = self.ahead.choose(inputs, tasks) if self.ahead is not None else None
        if chosen is None:
            chosen = self.practice.choose(tasks) if self.practice else []
        self.reward.practising = chosen
        self._environment_ids = ids = [self.reward.place(task)[0] for task in tasks]
        with (self.finite.sampling(self.state.global_step + 1),  # pyright: ignore[reportAttributeAccessIssue]
              self.rolling_out(chosen)):
            output = super()._generate_and_score_completions(inputs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.served is not None:
            self.served.rest()
        self.groups_alike.append(self._metrics["train"][ALIKE][-1])  # pyright: ignore[reportAttributeAccessIssue]
        # One label for each row: TRL's shuffle and split carry it to the loss together with the completions.
        device = output["completion_ids"].device
        output["environment_ids"] = torch.tensor(ids, device=device)
        output["completion_index"] = self.reward.completions.numbers(len(ids)).to(device)
        if self.advantages is not None:
            with self.rolling_out(chosen):
                self.advantages.remake(output, self.accelerator.unwrap_model(self.model), ids, self.rows_of)  # pyright: ignore
        self._leave_out_screened(output)
        if self.practice:
            output["practising"] = torch.tensor(chosen, device=device)
        if self.health is not None and self.health.due(self.state.global_step):  # pyright: ignore[reportAttributeAccessIssue]
            self._compare(self.health)
        return output

    def _leave_out_screened(self, output: dict[str, Any]) -> None:
        """Take the tokens of screened rows out of a loss to which rows of advantage 0 add a term of their own, such as a KL.
        `output`: TRL's dict of a generation's tensors. RLOO's loss has no such term."""
        payment, has_terms = self.reward.payment, hasattr(self, "loss_type")
        if payment is not None and has_terms and (self._every_row_teaches() or self._reads_entropy()):
            output["completion_mask"][torch.tensor(payment.screened, device=output["completion_mask"].device)] = 0

    def _compare(self, health: Health) -> None:
        """Compare how the base model and the policy read the newest generation, and add the result to the metrics."""
        begin, reward = time.perf_counter(), self.reward
        assert isinstance(reward, RewardFunction)
        names = [reward.names[place] for place in self._environment_ids]
        self.rollout_metrics |= health.measure(self.accelerator.unwrap_model(self.model), names, reward.said,  # pyright: ignore
                                               reward.scores)
        self.rollout_metrics["time/health_s"] = time.perf_counter() - begin

    def _choose_rollouts(self, inputs: list[dict[str, Any]]) -> None:
        """Choose how `inputs`, which are rows of the dataset, are rolled out: through `rollout_func` if any of them is of an
        environment with episodes, otherwise by TRL."""
        assert isinstance(self.reward, RewardFunction)
        self.rollout_func = rollout_function(self.reward.table, inputs)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return encode_prompts(self.processing_class, prompts), None, {}  # pyright: ignore[reportAttributeAccessIssue]

    def _generate(self, prompts: list[Any]) -> Any:
        with decoding_whole(self.processing_class):  # pyright: ignore[reportAttributeAccessIssue]
            return super()._generate(prompts)  # pyright: ignore[reportAttributeAccessIssue]
