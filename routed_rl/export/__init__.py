"""Export of a run's models: the deployed model, alone or with shares of environments' parts; the policy merged into one model;
the quarantine as a stock PEFT adapter. It reads the files of one checkpoint and needs no trainer.

Names are imported from the modules that define them: a deployed model is copied without PEFT and transformers.
"""
