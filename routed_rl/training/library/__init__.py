"""The trainers of `import routed_rl`."""

from routed_rl.training.library.trainers import RoutedGRPOTrainer, RoutedRLOOTrainer

__all__ = ["RoutedGRPOTrainer", "RoutedRLOOTrainer"]
