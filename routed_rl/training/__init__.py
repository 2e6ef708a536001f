"""The TRL subclasses; the only unit that imports TRL's trainers.

Names are imported from the modules that define them: a verb that evaluates a model needs some of these modules, and does not
need TRL.
"""
