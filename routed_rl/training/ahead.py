"""Rollouts one generation ahead (`rollout.ahead=1`): while the trainer learns from one generation, a server already completes
the prompts of the next one. These completions come from older weights, for which TRL's importance ratio between the sampling
and the training policy corrects (one-step off-policy training; Noukhovitch et al., 2024, arXiv:2410.18252).

Not covered: episodes, whose turns wait for the environments; datasets whose order the trainer does not know.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any

from routed_rl.envs import Prompt
from routed_rl.errors import ConfigError
from routed_rl.rollout import Served
from routed_rl.shapes import fits

Answer = tuple[list[list[int]], list[Any]]
"""The token ids of each completion, and for each of its tokens the list of log-probabilities that the server gave."""
Ask = Callable[[list[list[int]], Sequence[int], Sequence[bool], Callable[[bool], str | None]], Answer]
"""Maps prompts, the task of each, which of them the deployed model completes, and the adapter of each model (deployed or not) to
an answer."""
STORED = {"prompts": list[Any], "practising": list[bool], "step": int, "completions": list[list[int]], "logprobs": list[Any]}
"""The fields of a request in a checkpoint."""


@dataclass(frozen=True, eq=False)
class Request:
    """A request to a server for completions, with the answer."""

    prompts: list[Prompt]
    """The prompts as the environments made them."""
    practising: list[bool]
    """Which of the rows the deployed model completes."""
    step: int
    """The step after which the server's weights were pushed."""
    answer: Future[Answer]


class Ahead:
    """Requests the completions of a trainer's next generation. A second thread makes the request. Only the main thread pushes
    weights, and before it does so it waits for the answer (`Served.settle`)."""

    def __init__(self, trainer: Any, served: Served, ask: Ask) -> None:
        """ConfigError if the deployed model's rows would need weights to be pushed between two requests."""
        if served.engine.lora is None and trainer.practice is not None:
            raise ConfigError("rollout.ahead=1 with practice needs a server that holds the deployed model's adapter beside the "
                              "policy; start it with --enable-lora, or set routing.practice.share=0, or rollout.ahead=0")
        self.trainer, self.served, self._ask = trainer, served, ask
        self.request: Request | None = None
        self._tasks: list[int] = []

    def choose(self, inputs: list[dict[str, Any]], tasks: list[int]) -> list[bool] | None:
        """For each of the rows that are generated next, whether it practises, as was chosen when its completion was requested;
        None if none was requested. A request for other prompts is dropped."""
        self._tasks = tasks
        if self.request is not None and self.request.prompts != [row["prompt"] for row in inputs]:
            self.served.settle()
            self.request = None
        return None if self.request is None else self.request.practising

    def take(self) -> Answer | None:
        """The completions that were requested; None if none were. RolloutError if the server failed."""
        request, self.request = self.request, None
        if request is None:
            return None
        begin = time.perf_counter()
        answer = request.answer.result()
        self.trainer.rollout_metrics |= {"rollout/staleness": self.trainer.state.global_step - request.step,
                                         "time/rollout_wait_s": time.perf_counter() - begin}
        return answer

    def ask_next(self) -> None:
        """Request the completions of the generation after this one, with the weights that the server has now. After the last
        generation nothing is requested."""
        trainer, arguments = self.trainer, self.trainer.args
        every = arguments.steps_per_generation * trainer.num_iterations
        if (trainer._step // every + 1) * every >= trainer.state.max_steps * arguments.gradient_accumulation_steps:
            return
        tasks = [task + arguments.generation_batch_size // trainer.num_generations for task in self._tasks]
        found = [trainer.reward.table.task(task) for task in tasks]
        prompts, practice = [task.prompt for _, task in found], trainer.practice
        practising = practice.choose(tasks) if practice is not None else [False] * len(tasks)
        asked = trainer.in_context(prompts, [place for place, _ in found])
        models = (True, False) if practice is not None and practice.active else (False,)  # the policy last: others ask for it
        adapters = {deployed: self.served.show(deployed=deployed) for deployed in models}
        ids, *_ = trainer._tokenize_prompts(asked)
        self.request = Request(prompts, practising, trainer.state.global_step, _begun(
            lambda: self._ask(ids, tasks, practising, adapters.get)))
        self.served.pending = self.request.answer

    def state(self) -> dict[str, Any] | None:
        """The request with its answer, for a checkpoint. None if there is no request, or if the server failed, which `take` will
        report."""
        self.served.settle()
        if self.request is None or self.request.answer.exception() is not None:
            return None
        completions, logprobs = self.request.answer.result()
        return {"prompts": self.request.prompts, "practising": self.request.practising, "step": self.request.step,
                "completions": completions, "logprobs": logprobs}

    def load(self, stored: dict[str, Any] | None) -> None:
        """The inverse of `state`. ValueError if the stored request is not complete."""
        if stored is None:
            return
        if not fits(stored, STORED) or len({len(stored[name]) for name in STORED if name != "step"}) != 1:
            raise ValueError("its request for the next generation is not whole")
        answer: Future[Answer] = Future()
        answer.set_result((stored["completions"], stored["logprobs"]))
        self.request = Request(stored["prompts"], stored["practising"], stored["step"], answer)


def _begun(ask: Callable[[], Answer]) -> Future[Answer]:
    """The answer of `ask`, which runs in a thread that does not keep the process alive."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True, name="rollout.ahead").start()
    return answer

