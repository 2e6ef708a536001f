"""Environments: `Task`, `Score`, `Episode`, and the contract that a plug-in fulfils."""

from routed_rl.envs.conversation import Conversation, Played
from routed_rl.envs.core import (
    AnyEnvironment,
    Environment,
    Episode,
    EpisodicEnvironment,
    Message,
    Prompt,
    Score,
    Task,
    has_episodes,
)
from routed_rl.envs.faults import ContractError, Failure
from routed_rl.envs.host.isolation import Isolation
from routed_rl.envs.host.process import EnvironmentProcess
from routed_rl.envs.loading import load_environments
from routed_rl.envs.mixture import LoadedEnvironment, check_prompts, mixture, task_stream, trained
from routed_rl.envs.scoring import Scorer, means, neutral_rewards, score_many

__all__ = ["AnyEnvironment", "ContractError", "Conversation", "Environment", "EnvironmentProcess", "Episode",
           "EpisodicEnvironment", "Failure", "Isolation", "LoadedEnvironment", "Message", "Played", "Prompt", "Score", "Scorer",
           "Task", "check_prompts", "has_episodes", "load_environments", "means", "mixture", "neutral_rewards", "score_many",
           "task_stream", "trained"]
