"""The trainers that `import routed_rl` offers."""

from routed_rl.training.library.trainers import RoutedGRPOTrainer, RoutedRLOOTrainer

__all__ = ["RoutedGRPOTrainer", "RoutedRLOOTrainer"]
