"""Exports a run's models: the deployed model, alone or with shares of environments' parts; the policy as one merged model; the
quarantine as a stock PEFT adapter. It reads the files of one checkpoint and needs no trainer. `hub` sends files to the Hugging
Face hub.

Import each name from the module that defines it; this file imports none, so that copying a deployed model needs neither PEFT nor
transformers.
"""
