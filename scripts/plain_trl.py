"""The same experiment by TRL alone, as a user of TRL would write it: TRL's own trainer, with its defaults.

    python scripts/plain_trl.py --out DIR [--samples N] [FIELD=VALUE ...]

`routed_rl.envs` gives tasks and scores, so that prompts and rewards are those of `routed-rl train`. Nothing else of `routed_rl`
takes part. Fields are those of `trl.GRPOConfig`. Embeddings, head and last norm are frozen, as `model.freeze` has it. With
`--samples`, TRL's own `evaluate` scores N completions in each environment before and after the training. The last line that is
printed maps each phase to its seconds, in JSON.
"""

import argparse
import json
import time
from itertools import islice, pairwise
from typing import Any

TIMES = {"begin": time.perf_counter()}

import yaml  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from routed_rl.envs import load_environments, mixture, task_stream, trained  # noqa: E402

TIMES["import"] = time.perf_counter()
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", required=True)
parser.add_argument("--model", default="environments/persona_lab/model")
parser.add_argument("--env", default="configs/env/lab.yaml", help="a mixture of environments")
parser.add_argument("--trainer", default="configs/trainer/grpo.yaml", help="fields of GRPOConfig")
parser.add_argument("--samples", type=int, default=0)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
given = parser.parse_args()
with open(given.env) as env_file, open(given.trainer) as trainer_file:
    environments, fields = yaml.safe_load(env_file), yaml.safe_load(trainer_file)
fields |= {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in given.fields)}
for name in ("algorithm", "lean"):  # no fields of TRL's
    fields.pop(name, None)


def reward(completions: list[Any], row: list[int], log_metric: Any, **_: Any) -> list[float | None]:
    """Pay what the environments pay, and log the mean of every score in each environment."""
    scored: dict[str, list[dict[str, Any]]] = {}
    rewards: list[float | None] = []
    for place, completion in zip(row, completions, strict=True):
        loaded, task = tasks[place]
        environment: Any = loaded.environment
        score = environment.score(task, completion if isinstance(completion, str) else completion[-1]["content"])
        scored.setdefault(loaded.name, []).append(score.values())
        rewards.append(score.reward)
    for name, values in scored.items():
        for key in values[0]:
            log_metric(f"{name}/{key}", sum(each.get(key, 0.0) for each in values) / len(values))
    return rewards


args = GRPOConfig(given.out, seed=given.seed, shuffle_dataset=False, num_generations_eval=1, per_device_eval_batch_size=500,
                  **fields)
loaded = load_environments({name: settings | {"isolate": False} for name, settings in environments.items()})
learned = trained(loaded)
count = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps // (args.num_generations or 1)
tasks = [(learned[place], task) for place, task in islice(mixture(learned, given.seed), count)]
tasks += [(each, task) for each in loaded for task in islice(task_stream(each, "eval", given.seed), given.samples)]
data = Dataset.from_list([{"prompt": task.prompt, "row": row} for row, (_, task) in enumerate(tasks)])
model: Any = AutoModelForCausalLM.from_pretrained(given.model)
tokenizer = AutoTokenizer.from_pretrained(given.model)
for part in (model.get_input_embeddings(), model.get_output_embeddings(), model.base_model.norm):
    part.requires_grad_(False)
held_out = data.select(range(count, len(data))) if given.samples else None
trainer = GRPOTrainer(model, reward, args, data.select(range(count)), held_out, tokenizer)
TIMES["load"] = time.perf_counter()
if given.samples:
    trainer.evaluate()
    print(trainer.state.log_history[-1])
TIMES["base"] = time.perf_counter()
trainer.train()
TIMES["train"] = time.perf_counter()
if given.samples:
    trainer.evaluate()
    print(trainer.state.log_history[-1])
TIMES["evaluate"] = time.perf_counter()
trainer.save_model(f"{given.out}/deployed")
TIMES["save"] = time.perf_counter()
print(json.dumps({name: end - begin for (_, begin), (name, end) in pairwise(TIMES.items())}))
