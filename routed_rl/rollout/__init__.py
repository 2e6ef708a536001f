"""Rollouts: turns of a conversation, and vLLM as an engine that serves the policy. No other package here imports vLLM, and this
one imports it only when an engine opens."""

from routed_rl.rollout.adapters import PolicyAdapters
from routed_rl.rollout.engine import LORA_RANKS, Engine, Lora, Sampling, lora_for
from routed_rl.rollout.opening import check_engine, join_servers, open_engine
from routed_rl.rollout.parity import ParityCheck, fixed_sequences
from routed_rl.rollout.parts import BELOW, Part, parts_of
from routed_rl.rollout.served import Served
from routed_rl.rollout.turns import Rollout, begin, play
from routed_rl.rollout.weights import PolicyWeights

__all__ = ["BELOW", "LORA_RANKS", "Engine", "Lora", "ParityCheck", "Part", "PolicyAdapters", "PolicyWeights", "Rollout",
           "Sampling", "Served", "begin", "check_engine", "fixed_sequences", "join_servers", "lora_for", "open_engine",
           "parts_of", "play"]
