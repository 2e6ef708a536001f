"""Requests rollouts one generation ahead (`rollout.ahead=1`): while the trainer learns from one generation, a server already
completes the prompts of the next one. These completions come from older weights, for which TRL's importance ratio between the
sampling and the training policy corrects (one-step off-policy training; Noukhovitch et al., 2024, arXiv:2410.18252).

Not covered: episodes, whose turns wait for the environments; datasets whose order the trainer does not know.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from routed_rl.envs import Prompt
from routed_rl.errors import ConfigError
from routed_rl.rollout import Served
from routed_rl.shapes import fits
from routed_rl.threads import in_thread

Answer = tuple[list[list[int]], list[Any]]
"""A server's answer: the token ids of each completion, and for each token of each completion the list of log-probabilities that
the server gave."""
Ask = Callable[[list[list[int]], Sequence[int], Sequence[bool], Callable[[bool], str | None]], Answer]
"""Function that asks a server to complete prompts. Its arguments are the token ids of the prompts, the id of each prompt's task,
whether the deployed model (and not the policy) completes each prompt, and a function that returns the name of an adapter: for
True that of the deployed model, for False that of the policy (None: the request names no adapter)."""
STORED = {"prompts": list[Any], "practising": list[bool], "step": int, "completions": list[list[int]], "logprobs": list[Any]}
"""The fields of a request that a checkpoint stores, with their types."""


@dataclass(frozen=True, eq=False)
class Request:
    """A request to a server for completions. `answer` has a result once the server has sent the completions."""

    prompts: list[Prompt]
    """The prompts as the environments made them."""
    practising: list[bool]
    """For each prompt, whether the deployed model completes it, because its row practises."""
    step: int
    """The number of steps that had been made when the request was sent. The server answers with the weights of that time."""
    answer: Future[Answer]


class Ahead:
    """Requests the completions of a trainer's next generation from a server. A second thread waits for the answer. Only the main
    thread sends weights to the server, and it waits for the answer before it does so (`Served.settle`)."""

    def __init__(self, trainer: Any, served: Served, ask: Ask) -> None:
        """`ask`: the function that sends the prompts to the server. ConfigError if groups practise but the server cannot hold the
        policy and the deployed model at once."""
        if served.engine.lora is None and trainer.practice is not None:
            raise ConfigError("rollout.ahead=1 with practice needs a server that holds the deployed model's adapter beside the "
                              "policy; start it with --enable-lora, or set routing.practice.share=0, or rollout.ahead=0")
        self.trainer, self.served, self._ask = trainer, served, ask
        self.request: Request | None = None
        self._tasks: list[int] = []

    def choose(self, inputs: list[dict[str, Any]], tasks: list[int]) -> list[bool] | None:
        """Return, for each row of the generation that is made now, whether it practises, as was chosen when the completions of
        these rows were requested. Return None if no completions were requested for these rows; a request for other prompts is
        dropped. `inputs`: the rows, as entries of the dataset. `tasks`: the id of each row's task."""
        self._tasks = tasks
        if self.request is not None and self.request.prompts != [row["prompt"] for row in inputs]:
            self.served.settle()
            self.request = None
        return None if self.request is None else self.request.practising

    def take(self) -> Answer | None:
        """Wait for the requested completions and return them; None if there is no request. RolloutError if the server failed."""
        request, self.request = self.request, None
        if request is None:
            return None
        self.served.settle()
        metrics, wait = self.trainer.rollout_metrics, "time/rollout_wait_s"  # a step may take several generations
        metrics |= {"rollout/staleness": self.trainer.state.global_step - request.step,
                    wait: metrics.get(wait, 0.0) + self.served.waited_s}
        self.served.waited_s = 0.0
        return request.answer.result()

    def ask_next(self) -> None:
        """Request the completions of the next generation, from the weights that the server has now. If the present generation is
        the run's last, nothing is requested."""
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
        self.request = Request(prompts, practising, trainer.state.global_step, in_thread(
            lambda: self._ask(ids, tasks, practising, adapters.get), "rollout.ahead"))
        self.served.pending = self.request.answer

    def state(self) -> dict[str, Any] | None:
        """Wait for the server's answer, and return the request and the answer for a checkpoint. Return None if there is no
        request or if the server failed; after a failure, the next `take` raises the server's error."""
        self.served.settle()
        if self.request is None or self.request.answer.exception() is not None:
            return None
        completions, logprobs = self.request.answer.result()
        prompts = json.loads(json.dumps(self.request.prompts))  # an environment may give text of numpy, which torch does not load
        return {"prompts": prompts, "practising": self.request.practising, "step": self.request.step,
                "completions": completions, "logprobs": logprobs}

    def load(self, stored: dict[str, Any] | None) -> None:
        """Restore a request from what `state` returned. ValueError if the stored request is not complete."""
        if stored is None:
            return
        if not fits(stored, STORED) or len({len(stored[name]) for name in STORED if name != "step"}) != 1:
            raise ValueError("its request for the next generation is not whole")
        answer: Future[Answer] = Future()
        answer.set_result((stored["completions"], stored["logprobs"]))
        self.request = Request(stored["prompts"], stored["practising"], stored["step"], answer)
