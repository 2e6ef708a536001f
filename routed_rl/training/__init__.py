"""Routed versions of TRL's trainers. No other package of routed_rl imports TRL's trainers.

This file imports nothing. Callers import names from the modules that define them, because a command that evaluates a model needs
some of these modules and must not need TRL.
"""
