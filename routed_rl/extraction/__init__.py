"""Prompts -> activations -> `Subspace`, one function per method; and whether what was found is any good."""

from routed_rl.extraction.activations import collect, evaluating, read_prompt_end
from routed_rl.extraction.contrast import ContrastPair, TokenPair, find_prompts, read_prompts, tokenize_pairs
from routed_rl.extraction.find import METHODS, check_inputs, extract, find_subspace
from routed_rl.extraction.job import Job

__all__ = ["METHODS", "ContrastPair", "Job", "TokenPair", "check_inputs", "collect", "evaluating", "extract", "find_prompts",
           "find_subspace", "read_prompt_end", "read_prompts", "tokenize_pairs"]
