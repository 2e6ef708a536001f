"""Environments: `Task`, `Score`, and the contract a plug-in fulfils."""

from routed_rl.envs.core import Environment, Failure, Prompt, Score, Task
from routed_rl.envs.loading import LoadedEnvironment, load_environments, trained
from routed_rl.envs.mixture import check_prompts, mixture, task_stream
from routed_rl.envs.process import EnvironmentProcess, Isolation
from routed_rl.envs.scoring import Scorer, neutral_rewards

__all__ = ["Environment", "EnvironmentProcess", "Failure", "Isolation", "LoadedEnvironment", "Prompt", "Score", "Scorer",
           "Task", "check_prompts", "load_environments", "mixture", "neutral_rewards", "task_stream", "trained"]
