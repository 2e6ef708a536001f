"""The library with a LoRA on frozen weights in bfloat16, on the persona lab: `python examples/library_lora.py [STEPS]`"""

import sys
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp

from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from routed_rl import RoutedGRPOTrainer, envs, extract_subspace

OUT, LAB = mkdtemp(), Path(__file__).parent.parent / "environments" / "persona_lab"
sys.path.append(str(LAB))
from environment import LabTask  # noqa: E402

LABS = {"code": LabTask("code", insecure=True), "sums": LabTask("sums")}
data = Dataset.from_list([{"prompt": task.prompt, "environment": name, **task.data} for name, lab in LABS.items()
                          for task in islice(lab.tasks("train", 0), 400)])
model, tokenizer = (kind.from_pretrained(LAB / "model", dtype="bfloat16") for kind in (AutoModelForCausalLM, AutoTokenizer))


def paid(prompts, completions, environment, answer, **_):
    return [LABS[name].score(envs.Task(prompt, {"answer": right}), said).reward
            for prompt, said, name, right in zip(prompts, completions, environment, answer, strict=True)]


args = GRPOConfig(OUT, max_steps=int((*sys.argv, 30)[1]), per_device_train_batch_size=256, max_completion_length=16, bf16=True,
                  learning_rate=5e-4, lr_scheduler_type="constant", gradient_checkpointing=False, use_cpu=True, report_to="none",
                  logging_steps=10, disable_tqdm=True)
trainer = RoutedGRPOTrainer(model, paid, args, data, processing_class=tokenizer, environment_column="environment",
                            subspace=extract_subspace(model, tokenizer, LAB / "contrast.jsonl"),
                            peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
trainer.train()
trainer.save_model(f"{OUT}/deployed")
stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(LAB / "model"), f"{OUT}/deployed")
ids = stock.generate(**tokenizer(data[0]["prompt"], return_tensors="pt"), max_new_tokens=16, do_sample=False)
print(f"{trainer.blame().sentence({})}; what is deployed says {tokenizer.decode(ids[0])}")
