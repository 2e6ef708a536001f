"""Lets a trainer roll out episodes, which have several turns, through TRL's `rollout_func`. The `env_mask` that this function
returns is 1 at the tokens that the model generated, and 0 at those of the environment and the chat template."""

from collections.abc import Callable
from typing import Any, cast

from routed_rl.envs import Conversation, EpisodicEnvironment, has_episodes
from routed_rl.model.chat import ChatTokens
from routed_rl.rollout import Rollout, begin, play
from routed_rl.training.tasks import TaskTable

RolloutFunction = Callable[[list[Any], Any], dict[str, Any]]


def rollout_function(table: TaskTable, inputs: list[dict[str, Any]]) -> RolloutFunction | None:
    """Return the `rollout_func` for `inputs`, which are rows of the dataset. Return None if no row is of an environment with
    episodes, so that TRL makes the rollouts itself."""
    episodic = [has_episodes(table.environments[row["environment_id"]].environment) for row in inputs]
    if not any(episodic):
        return None

    def roll_out(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        chat = ChatTokens(trainer.processing_class)
        rows = [_begin(table, row, chat) if plays else Rollout(chat.prompt(prompt, ()))
                for row, plays, prompt in zip(inputs, episodic, prompts, strict=True)]
        for row, practises in zip(rows, trainer.reward.practising or [False] * len(rows), strict=True):
            row.practises = practises

        known: list[bool] = []

        def generate(live: list[Rollout]) -> tuple[list[list[int]], list[list[float]] | None]:
            with trainer.rolling_out([row.practises for row in live]):
                turns, logprobs = trainer._generate_single_turn([row.ids for row in live], None, {}, 1)
            known.append(logprobs is not None)
            return turns, logprobs

        play(rows, generate, chat, trainer.max_completion_length)
        return {"prompt_ids": [row.prompt_ids for row in rows], "completion_ids": [row.completion_ids for row in rows],
                "logprobs": [row.logprobs for row in rows] if all(known) else None,
                "env_mask": [row.mask for row in rows], "conversation": [row.conversation for row in rows]}

    return roll_out


def _begin(table: TaskTable, row: dict[str, Any], chat: ChatTokens) -> Rollout:
    environment_id, task = table.task(row["task_id"])
    return begin(Conversation(cast(EpisodicEnvironment, table.environments[environment_id].environment), task), chat)
