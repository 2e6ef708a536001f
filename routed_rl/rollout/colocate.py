"""vLLM in the trainer's process. Not covered: several processes."""

import gc
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from routed_rl.artifacts import ADAPTER, ADAPTER_CONFIG
from routed_rl.config import RolloutConfig
from routed_rl.errors import RolloutError
from routed_rl.rollout.engine import Lora, Sampling, require_room
from routed_rl.rollout.heads import HeadPadding
from routed_rl.rollout.settings import engine_settings, process_settings
from routed_rl.rollout.weights import ADAPTERS, NamedTensors


def write_adapter(folder: Path, tensors: dict[str, Tensor], lora: Lora) -> None:
    """Write a stock PEFT adapter, with the fields that vLLM reads, into `folder`. `tensors` has the adapter's factors under
    PEFT's names, and `lora` its rank and modules."""
    folder.mkdir(exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, folder / ADAPTER)
    settings = {"peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.rank, "target_modules": lora.modules, "bias": "none"}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings))


def memory_folder() -> Path:
    """A new temporary folder, on a file system in memory if there is one."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="routed_rl-", dir=shared if os.access(shared, os.W_OK) else None))


class ColocatedEngine:
    """`vllm.LLM` in this process, for the model in `folder`. Without a GPU it uses torch's own random numbers, so a seeded run
    repeats."""

    def __init__(self, config: RolloutConfig, folder: Path, lora: Lora | None) -> None:
        os.environ.update(process_settings(config) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        self.dtype, self.lora, self._folder = config.dtype, lora, memory_folder()
        self._sleeps, self._asleep = config.sleep, False
        self.padding: HeadPadding | None = None
        try:
            with _trainer_state():
                self.llm: Any = LLM(model=str(folder), skip_tokenizer_init=True, gpu_memory_utilization=config.gpu_memory,
                                    enable_sleep_mode=config.sleep, **engine_settings(config, lora))
        except Exception as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise RolloutError(f"vLLM cannot serve {folder} (rollout.dtype={config.dtype}, rollout.memory_gb={config.memory_gb}, "
                               f"rollout.max_length={config.max_length}): {_on_one_line(error)}; VLLM_LOGGING_LEVEL=INFO tells "
                               "more, rollout=transformers works for every model") from error

    def load(self, weights: NamedTensors) -> None:
        worker = self.llm.llm_engine.model_executor.driver_worker
        # Not `model.load_weights`: on a CPU that would leave the packed copies of the weights unchanged.
        worker.reload_weights(weights_iterator=weights)
        self.llm.reset_prefix_cache()

    def load_adapter(self, adapter: str, tensors: dict[str, Tensor]) -> None:
        assert self.lora is not None
        write_adapter(self._folder / adapter, tensors, self.lora)
        try:
            self.llm.llm_engine.add_lora(self.request(adapter, load_inplace=True))
        except (ValueError, RuntimeError) as error:  # a module on which it cannot put a LoRA
            raise RolloutError(f"vLLM does not take the adapter: {_on_one_line(error)}; rollout=transformers works for every "
                               "LoRA") from error
        self.llm.reset_prefix_cache()

    def logprobs(self, sequences: list[list[int]], adapter: str | None) -> list[list[float]]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._generate(sequences, sampling, adapter)
        return [[found[token].logprob for token, found in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
                for ids, output in zip(sequences, outputs, strict=True)]

    def complete(self, prompts: list[list[int]], sampling: Sampling, adapter: str | None) -> list[list[int]]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        self.require_room(prompts)
        settings = SamplingParams(temperature=sampling.temperature, max_tokens=sampling.max_tokens, detokenize=False,
                                  stop_token_ids=sampling.stop, ignore_eos=True)
        return [list(output.outputs[0].token_ids) for output in self._generate(prompts, settings, adapter)]

    def require_room(self, prompts: list[list[int]]) -> None:
        """RolloutError if a prompt leaves no room for a completion; vLLM itself raises ValueError."""
        largest: int = self.llm.llm_engine.vllm_config.model_config.max_model_len
        for ids in prompts:
            require_room(ids, largest)

    def _generate(self, prompts: list[list[int]], sampling: Any, adapter: str | None) -> list[Any]:
        return self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False,
                                 lora_request=None if adapter is None else self.request(adapter))

    def request(self, adapter: str, *, load_inplace: bool = False) -> Any:
        """The `LoRARequest` that names an adapter to vLLM. `load_inplace`: whether vLLM loads the adapter's files again."""
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        return LoRARequest(adapter, 1 + ADAPTERS.index(adapter), str(self._folder / adapter), load_inplace=load_inplace)

    def sleep(self) -> None:
        if self._sleeps and not self._asleep:
            self.llm.sleep(level=1)  # the weights go to the machine's memory, and cached keys and values are dropped
            self._asleep = True

    def wake(self) -> None:
        if self._asleep:
            self.llm.wake_up()
            self._asleep = False

    def hand_over(self) -> list[str]:
        return []

    def close(self) -> None:
        if hasattr(self, "llm"):
            self.llm.llm_engine.engine_core.shutdown()
            del self.llm
            gc.collect()
        shutil.rmtree(self._folder, ignore_errors=True)


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _trainer_state() -> Iterator[None]:
    """Restore, after the block, two things that starting vLLM changes and on which a trainer relies: the states of torch's random
    generators and the number of threads."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
    torch.set_num_threads(threads)
