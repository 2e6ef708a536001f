"""The verbs that make, measure and publish runs, with one function for each verb, and the steps that several verbs share.

Names are imported from the modules that define them, so that a verb that only copies files need not wait for a trainer to load.
"""
