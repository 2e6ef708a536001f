"""The verbs that make, measure and hand out runs, one function for each, and the steps that they share.

Names are imported from the modules that define them: a verb that only copies files must not wait for a trainer to load.
"""
