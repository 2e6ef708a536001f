"""Supervised fine-tuning on completions, with TRL's `SFTTrainer`. The loss counts the tokens of the completions, not those of the
prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from routed_rl.model.prompts import encode_prompts, ids_of

AfterStep = Callable[[int], bool]
"""Function that is called after each step, with the number of steps made so far, and returns whether the training stops."""


def fine_tune(model: Any, tokenizer: PreTrainedTokenizerBase, said: Sequence[tuple[Any, str]], folder: Path, *, rate: float,
              batch: int, seed: int, epochs: float = 1, steps: int = -1, after_step: AfterStep | None = None) -> None:
    """Train a model in place on `said`, which are pairs of a prompt (text or chat messages) and the text of a completion. The
    training ends after `epochs` times all pairs or, if `steps` is not -1, after that many optimizer steps. `rate`: the learning
    rate. `batch`: pairs per step. TRL requires `folder`, but nothing is written into it."""
    from trl import SFTConfig, SFTTrainer  # takes a second, which a run without it is spared

    end = tokenizer.eos_token_id
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in said])
    written = [[*ids_of(tokenizer, text), end] if text else [end] for _, text in said]
    disable_progress_bars()
    data = Dataset.from_dict({"input_ids": [one + two for one, two in zip(prompts, written, strict=True)],
                              "completion_mask": [[0] * len(one) + [1] * len(two)
                                                  for one, two in zip(prompts, written, strict=True)]})
    arguments = SFTConfig(output_dir=str(folder), num_train_epochs=epochs, max_steps=steps, per_device_train_batch_size=batch,
                          learning_rate=rate, lr_scheduler_type="constant", seed=seed, report_to="none", save_strategy="no",
                          disable_tqdm=True, logging_strategy="no", use_cpu=not torch.cuda.is_available(), bf16=False,
                          gradient_checkpointing=False, completion_only_loss=True, max_length=None)
    callbacks: list[TrainerCallback] = [] if after_step is None else [_After(after_step)]
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class _After(TrainerCallback):
    def __init__(self, after_step: AfterStep) -> None:
        self.after_step = after_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.after_step(state.global_step):
            control.should_training_stop = True
