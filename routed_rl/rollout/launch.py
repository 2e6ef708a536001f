"""Starts `vllm serve` on this machine, and stops it. The server is stock vLLM, with its development endpoints on, and listens
only on 127.0.0.1."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from routed_rl.config import RolloutConfig
from routed_rl.errors import RolloutError
from routed_rl.guard import guarded
from routed_rl.rollout.engine import Lora
from routed_rl.rollout.settings import engine_settings, process_settings
from routed_rl.web import NoAnswer, Server, free_port

LOG_LINES = 3
"""How many lines of the log of a server that does not start are shown in the error."""
STOP_S = 20


class LaunchedServer:
    """The process of a server for the model in `folder`. `stop` ends the server's process and all processes that it has started.
    They also end when this process dies for any reason."""

    def __init__(self, config: RolloutConfig, folder: Path, lora: Lora | None) -> None:
        port = free_port()
        self.url, self._config = f"http://127.0.0.1:{port}", config
        command = guarded([sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *serve_arguments(config, folder, lora),
                           "--host", "127.0.0.1", "--port", str(port)])
        environment = os.environ | process_settings(config) | own_gpu(os.environ, torch.cuda.device_count()) | {
            "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        with tempfile.NamedTemporaryFile("w", prefix="routed_rl-server-", suffix=".log", delete=False) as output:
            self.log = Path(output.name)
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=subprocess.STDOUT, start_new_session=True)

    def wait(self) -> None:
        """Return when the server answers. If the server ends before that or takes too long, it is stopped and RolloutError is
        raised."""
        give_up = time.monotonic() + self._config.start_timeout_s
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > give_up:
                state = "ended" if self.process.poll() is not None else f"was not up after {self._config.start_timeout_s:g} s"
                self.stop()
                raise RolloutError(f"`vllm serve` {state}: {self.last_lines()} (all of it: {self.log}); raise "
                                   "rollout.start_timeout_s if it only needs longer")
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            return Server(self.url, 5.0, 1, 2**16).ask("GET", "/health").status_code == 200
        except NoAnswer:
            return False

    def last_lines(self) -> str:
        """The last `LOG_LINES` lines of the server's log that contain "Error", joined into one line. If no line contains it, the
        last lines of the log."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return " | ".join(line[-300:] for line in (errors or lines)[-LOG_LINES:]) or "it said nothing"

    def stop(self) -> None:
        """End the server. Calling this again has no effect."""
        self.process.terminate()  # tells the guard to kill
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def own_gpu(environment: Mapping[str, str], count: int) -> dict[str, str]:
    """The environment variable that gives the server the last of `count` GPUs, as a mapping; empty without GPUs. The trainer does
    not use that GPU, because NCCL cannot send from a GPU to itself. `environment` has this process's variables."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[-1] if visible else str(count - 1)} if count else {}


def serve_arguments(config: RolloutConfig, folder: Path, lora: Lora | None) -> list[str]:
    """The arguments of `vllm serve` for the model in `folder`."""
    arguments = [str(folder), "--max-logprobs", "-1", "--gpu-memory-utilization", str(config.gpu_memory)]
    for name, value in engine_settings(config, lora).items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(option)
        else:
            arguments += [option, *value] if isinstance(value, list) else [option, str(value)]
    if torch.cuda.is_available():
        arguments += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
    return arguments
