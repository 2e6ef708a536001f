"""Generations by transformers whose rows share prompts, with and without computing a prompt once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from transformers import GenerationConfig

from benchmark.workload import Cost, Workload
from routed_rl.model.load import load_model
from routed_rl.model.prefill import sharing_prompts


class Generator:
    """A model and random prompts; every completion has the workload's greatest length."""

    def __init__(self, workload: Workload) -> None:
        self.model: Any = load_model(workload.path)
        draw = torch.randint(3, self.model.config.vocab_size, (workload.rows // workload.group, workload.prompt),
                             generator=torch.Generator().manual_seed(0))
        self.ids = draw.repeat_interleave(workload.group, dim=0)
        length = workload.completion[1]
        self.settings = GenerationConfig(max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0, pad_token_id=0,
                                         eos_token_id=1, disable_compile=True)

    def run(self, *, share: bool) -> Cost:
        begin = Cost.now()
        with sharing_prompts(self.model) if share else nullcontext():
            self.model.generate(input_ids=self.ids, attention_mask=torch.ones_like(self.ids), generation_config=self.settings)
        return Cost.now() - begin
