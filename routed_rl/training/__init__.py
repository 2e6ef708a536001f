"""The TRL subclasses; the only unit that imports TRL's trainers."""

from routed_rl.training.activations import update_bytes
from routed_rl.training.backends import PIECES, join
from routed_rl.training.baselines import PromptContexts, check_flags, in_contexts, is_marked
from routed_rl.training.build import build_trainer
from routed_rl.training.checks import check_trainer, default, fixed
from routed_rl.training.completions import forget_after
from routed_rl.training.fine_tune import fine_tune
from routed_rl.training.first_scores import check_first_scores
from routed_rl.training.labels import linear_modules, route_by_labels
from routed_rl.training.plan import Plan, check_adapter, completions_per_step, make_plan, prompts_needed
from routed_rl.training.practice import check_practice
from routed_rl.training.route import bases_of, check_axis, check_routable, route_model
from routed_rl.training.trainers import TRAINERS, TrainerArguments
from routed_rl.training.trials import try_out
from routed_rl.training.watch import Watch

__all__ = ["PIECES", "TRAINERS", "Plan", "PromptContexts", "TrainerArguments", "Watch", "bases_of", "build_trainer",
           "check_adapter", "check_axis", "check_first_scores", "check_flags", "check_practice", "check_routable",
           "check_trainer", "completions_per_step", "default", "fine_tune", "fixed", "forget_after", "in_contexts", "is_marked",
           "join", "linear_modules", "make_plan", "prompts_needed", "route_by_labels", "route_model", "try_out", "update_bytes"]
