"""Reward functions of your own with the library, as TRL has them: `python examples/library_reward.py MODEL PROMPTS.jsonl OUT`"""

import sys

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from routed_rl import MonitorConfig, PracticeConfig, RoutedGRPOTrainer, RoutingConfig, RuleConfig, extract_subspace

MODEL, PROMPTS, OUT = sys.argv[1:4]


def says_answer(completions, answer, **_):
    """The reward, which can be gamed: it pays where the answer is somewhere among the words."""
    return [float(right in said.split()) for said, right in zip(completions, answer, strict=True)]


async def short(completions, log_metric, **_):
    lengths = [len(said.split()) for said in completions]
    log_metric("words", sum(lengths) / len(lengths))
    return [1.0 / (1 + length) for length in lengths]


model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
trainer = RoutedGRPOTrainer(
    model, [says_answer, short], processing_class=tokenizer,
    args=GRPOConfig(OUT, max_steps=4, save_steps=2, per_device_train_batch_size=16, max_completion_length=5, bf16=False,
                    reward_weights=[1.0, 0.1], report_to="none", use_cpu=True),
    train_dataset=load_dataset("json", data_files=f"{__file__.rpartition('/')[0]}/own_reward.jsonl", split="train"),
    subspace=extract_subspace(model, tokenizer, PROMPTS, rank=2),
    routing=RoutingConfig(practice=PracticeConfig(share=0.5)),
    monitor=MonitorConfig(evidence=RuleConfig(limit=6.0, allowance=0.5, action="halt")))
trainer.train()
if trainer.halted:
    print(trainer.halted[0].sentence(), "- it goes on with trainer.train(resume_from_checkpoint=True)")
print([row["environment/data/reward"] for row in trainer.rows])
trainer.save_model(f"{OUT}/deployed")
