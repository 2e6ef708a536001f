"""Routed versions of TRL's trainers. No other unit imports TRL's trainers.

Names are imported from the modules that define them: a verb that evaluates a model needs some of these modules, and does not need
TRL.
"""
