"""Lets a trainer take its rollouts from vLLM, by TRL's own generation with an engine that serves the policy and the deployed
model. The engine's log-probabilities are compared with the trainer's.

Not covered: several trainer processes with vLLM in them, images.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, cast

from trl.generation.vllm_generation import VLLMGeneration

from routed_rl.rollout import ParityCheck, Served
from routed_rl.rollout.server import REQUESTS
from routed_rl.threads import in_threads
from routed_rl.training.ahead import Ahead, Answer


class AdaptedLLM:
    """Wraps the vLLM `LLM` of `engine`, and names the adapter `adapter` in every request."""

    def __init__(self, engine: Any, adapter: str) -> None:
        self.engine, self.adapter = engine, adapter

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine.llm.generate(*args, lora_request=self.engine.request(self.adapter), **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.llm, name)


class PolicyGeneration(VLLMGeneration):
    """TRL's `VLLMGeneration` with an engine that was made elsewhere, because the engine that TRL makes has no choice of dtype and
    cannot run on a CPU."""

    def __init__(self, trainer: Any, served: Served, parity: ParityCheck) -> None:
        self.trainer, self.served, self.parity = trainer, served, parity
        mode = "colocate" if hasattr(served.engine, "llm") else "server"
        own = {"stop_token_ids": sorted(trainer.eos_token_ids), "ignore_eos": True} | (
            {"detokenize": False} if mode == "colocate" else {})
        same = ("repetition_penalty", "temperature", "top_p", "top_k", "min_p", "max_completion_length")
        super().__init__(trainer.model, trainer.accelerator, trainer.processing_class, mode=mode, logprobs=0,
                         structured_outputs_regex=trainer.args.vllm_structured_outputs_regex,
                         generation_kwargs=own | (trainer.args.generation_kwargs or {}),
                         **{name: getattr(trainer, name) for name in same})

    def _init_vllm(self) -> None:
        engine: Any = self.served.engine
        if self.mode == "colocate":
            self.llm = engine.llm
        else:
            self.vllm_client = engine

    def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None) -> tuple[Any, ...]:
        """Return completions in the order of `prompts` (token ids), in the form in which TRL's method returns them. The deployed
        model completes rows that practise, and the policy completes the others. With `rollout.ahead` these completions were
        requested while the trainer learned from the last generation, and the completions of the next generation are requested
        now."""
        ahead = self.trainer.ahead
        found = ahead.take() if ahead is not None else None
        answer = self._generate(prompts, images, num_generations, profiler) if found is None else (prompts, *found, None)
        if ahead is not None:
            ahead.ask_next()
        return answer

    def _generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any) -> tuple[Any, ...]:
        practice, rolling = self.trainer.practice, self.trainer.rolling

        def ask(places: list[int]) -> tuple[Any, ...]:
            if self.mode == "colocate":
                here, asked = super(PolicyGeneration, self), [prompts[place] for place in places]
                cast(Any, self.served.engine).require_room(asked)
                return here.generate(asked, images, num_generations, profiler)
            return self._ask_server(prompts, self.trainer.scored_tasks, places)

        if practice is None or not practice.active:
            with self._asking(self.served.show(deployed=False)):
                return ask([*range(len(prompts))])
        mine = [False] * len(prompts) if rolling is None else rolling.tolist()
        answer = self._by_model(mine, lambda deployed: self.served.show(deployed=deployed), ask)
        self.served.show(deployed=False)
        return answer

    def ask_ahead(self, prompts: list[list[int]], tasks: Sequence[int], practising: Sequence[bool],
                  adapter: Callable[[bool], str | None]) -> Answer:
        """Ask the server to complete prompts, and wait for the answer. Called in a thread beside the training; for the arguments
        see `ahead.Ask`."""
        _, completions, logprobs, _ = self._by_model(practising, adapter, lambda places: self._ask_server(prompts, tasks, places))
        return completions, logprobs

    def _by_model(self, mine: Sequence[bool], adapter: Callable[[bool], str | None],
                  ask: Callable[[list[int]], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Return the answers for all rows in their order. The deployed model answers the rows at which `mine` is True, and the
        policy answers the others. `adapter`: returns the name of the adapter for requests to the deployed model (True) or the
        policy (False); None: requests name no adapter. `ask`: takes indices of rows and returns their answers."""
        answers: list[list[Any]] = [[None] * len(mine) for _ in range(4)]
        for deployed in (False, True):
            name = adapter(deployed)  # in every process, even one without such rows
            places = [place for place, practises in enumerate(mine) if practises == deployed]
            if not places:
                continue
            with self._asking(name):
                found = ask(places)
            for answer, part in zip(answers, found, strict=True):
                for place, row in zip(places, part or [None] * len(places), strict=True):
                    answer[place] = row
        return tuple(answers)

    @contextmanager
    def _asking(self, adapter: str | None) -> Iterator[None]:
        """Inside this context, requests to the engine name this adapter; None: they name none."""
        if adapter is None:
            yield
        elif self.mode == "colocate":
            plain, self.llm = self.llm, AdaptedLLM(self.served.engine, adapter)
            try:
                yield
            finally:
                self.llm = plain
        else:
            with self.vllm_client.asking(adapter):
                yield

    def _ask_server(self, prompts: list[list[int]], tasks: Sequence[int] | None, places: list[int]) -> tuple[Any, ...]:
        """Ask a server to complete the rows of this process whose indices are in `places`, by one request for each group, so that
        a group is scored while others are still generated. `tasks`: the id of each row's task; None for turns of episodes, which
        are not scored one by one.

        Each process asks the server itself; in TRL the first process asks for all. The reason is that episodes end at different
        times in different processes, so that no call may wait for another process."""
        same = ("repetition_penalty", "temperature", "top_p", "top_k", "logprobs", "structured_outputs_regex",
                "generation_kwargs")
        settings = {name: getattr(self, name) for name in same}

        def one(group: list[int]) -> dict[str, Any]:
            answer = self.vllm_client.generate([prompts[place] for place in group], n=1, min_p=self.min_p or 0.0,
                                               max_tokens=self.max_completion_length, **settings)
            if tasks is not None:
                texts = self.trainer.processing_class.batch_decode(answer["completion_ids"], skip_special_tokens=True)
                self.trainer.reward.begin_scoring([tasks[place] for place in group], texts)
            return answer

        groups = [places] if tasks is None else [[*rows] for _, rows in groupby(places, key=lambda place: tasks[place])]
        answers = in_threads(one, groups, REQUESTS)
        return tuple([row for answer in answers for row in answer[name]]
                     for name in ("prompt_ids", "completion_ids", "logprobs", "logprob_token_ids"))

    def sync_weights(self) -> None:
        self.served.sync()
        self.trainer.rollout_metrics["time/sync_s"] = self.served.sync_seconds
        step = self.trainer.state.global_step
        if self.parity.is_due(step):
            with self.trainer.rolling_out(()):  # because the check has rows of its own
                self.trainer.rollout_metrics |= self.parity.run(step)


def use_engine(trainer: Any, served: Served, parity: ParityCheck, *, ahead: bool = False) -> None:
    """Make a trainer that was built to generate with transformers take its rollouts from `served`. `parity`: compares the
    engine's log-probabilities with the trainer's. `ahead`: whether rollouts are requested one generation ahead."""
    trainer.vllm_generation = PolicyGeneration(trainer, served, parity)
    trainer.ahead = Ahead(trainer, served, trainer.vllm_generation.ask_ahead) if ahead else None
    trainer.served = served
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, trainer.vllm_generation.mode, -1
