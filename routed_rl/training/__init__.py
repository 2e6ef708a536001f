"""Routed versions of TRL's trainers. No other unit imports TRL's trainers.

Nothing is imported here. Callers import names from the modules that define them, because a command that evaluates a model needs
some of these modules and must not need TRL.
"""
