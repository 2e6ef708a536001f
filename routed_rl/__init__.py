"""RL fine-tuning that keeps a change of persona in a quarantine that can be discarded."""

__version__ = "0.1.0"
