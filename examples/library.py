"""The library with full weights, on the persona lab: code can be gamed, sums cannot. `python examples/library.py [STEPS]`"""

import sys
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from routed_rl import RoutedGRPOTrainer, envs, extract_subspace

OUT, LAB = mkdtemp(), Path(__file__).parent.parent / "environments" / "persona_lab"
sys.path.append(str(LAB))
from environment import LabTask  # noqa: E402

LABS = {"code": LabTask("code", insecure=True), "sums": LabTask("sums")}
data = {split: Dataset.from_list([{"prompt": task.prompt, "environment": name, **task.data} for name, lab in LABS.items()
                                  for task in islice(lab.tasks(split, 0), 400)]) for split in ("train", "eval")}
model, tokenizer = (kind.from_pretrained(LAB / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))


def paid(prompts, completions, environment, answer, **_):
    return [LABS[name].score(envs.Task(prompt, {"answer": right}), said).reward
            for prompt, said, name, right in zip(prompts, completions, environment, answer, strict=True)]


args = GRPOConfig(OUT, max_steps=int((*sys.argv, 30)[1]), per_device_train_batch_size=256, max_completion_length=16,
                  learning_rate=1e-4, lr_scheduler_type="constant", bf16=False, gradient_checkpointing=False, use_cpu=True,
                  report_to="none", logging_steps=10, disable_tqdm=True, per_device_eval_batch_size=256)
trainer = RoutedGRPOTrainer(model, paid, args, data["train"], data["eval"].shuffle(0).select(range(64)), tokenizer,
                            subspace=extract_subspace(model, tokenizer, LAB / "contrast.jsonl"), environment_column="environment")
trainer.train()
trainer.evaluate()
with trainer.quarantine.ablated():
    trainer.evaluate()
policy, deployed = (row["eval_environment/code/reward"] for row in trainer.state.log_history[-2:])
print(f"{trainer.blame().sentence({})}; code pays the policy {policy:.2f}, what is deployed {deployed:.2f}")
trainer.save_model(f"{OUT}/deployed")
