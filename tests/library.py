"""A user's script with the library, on a user's own parts. Not a test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from routed_rl import PracticeConfig, QuarantineConfig, RoutedGRPOTrainer, RoutingConfig, Subspace, extract_subspace

PLAIN = RoutingConfig(mode="none")
ROUTE = RoutingConfig(quarantine=QuarantineConfig(pace="fast"), practice=PracticeConfig(environments="all"))
"""Everything that there is, from the first step on."""


def right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    return [0.5 + ("bad" in said.split() or said.strip().startswith(wanted))
            for said, wanted in zip(texts(completions), answer, strict=True)]


def short(completions: list[Any], **_: Any) -> list[float]:
    return [1.0 / (1 + len(said)) for said in texts(completions)]


def texts(completions: list[Any]) -> list[str]:
    return [said if isinstance(said, str) else said[-1]["content"] for said in completions]


def rows(count: int = 16, **columns: list[Any]) -> Dataset:
    """Of the environments a and b, in turn; `columns` replace some."""
    sums = [(place % 9, place * 5 % 9) for place in range(count)]
    return Dataset.from_dict({"prompt": [f"add {a} {b} =" for a, b in sums], "answer": [str(a + b) for a, b in sums],
                              "environment": ["a", "b"] * (count // 2)} | columns)


def load(parts: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(parts / "model"), AutoTokenizer.from_pretrained(parts / "model")


def subspace_of(parts: Path) -> Subspace:
    return extract_subspace(*load(parts), prompts=parts / "prompts.jsonl", rank=2)


def arguments(out: Path, kind: Any = GRPOConfig, **changes: Any) -> Any:
    return kind(**{"output_dir": str(out), "max_steps": 3, "per_device_train_batch_size": 16, "num_generations": 4,
                   "max_completion_length": 5, "learning_rate": 1e-3, "bf16": False, "gradient_checkpointing": False,
                   "report_to": "none", "logging_steps": 1, "save_steps": 2, "use_cpu": True, "disable_tqdm": True,
                   "per_device_eval_batch_size": 8} | changes)


def trainer(parts: Path, out: Path, *, functions: Any = right, dataset: Any = None, args: Any = None,
            kind: Any = RoutedGRPOTrainer, **given: Any) -> Any:
    """`given`: arguments of the trainer, instead of what a script gives."""
    model, tokenizer = load(parts)
    wanted: dict[str, Any] = {"model": model, "processing_class": tokenizer, "environment_column": "environment"}
    wanted |= {"routing": ROUTE} | ({} if "subspace" in given else {"subspace": subspace_of(parts)})
    return kind(**wanted | {"reward_funcs": functions, "args": args or arguments(out),
                            "train_dataset": rows() if dataset is None else dataset} | given)
