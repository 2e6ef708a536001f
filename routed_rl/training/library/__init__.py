"""The library: the trainers that `import routed_rl` offers to a script."""

from routed_rl.training.library.trainers import RoutedGRPOTrainer, RoutedRLOOTrainer

__all__ = ["RoutedGRPOTrainer", "RoutedRLOOTrainer"]
