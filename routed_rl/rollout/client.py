"""A client of one `vllm serve`: TRL's, with a limit of time on every call and retries that end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

import requests
from trl.generation.vllm_client import VLLMClient

from routed_rl.config import RolloutConfig
from routed_rl.errors import RolloutError

PAUSE_S = 1.0
"""Between a call that failed and the next try."""
ADAPTER = "deployed"


class Session(requests.Session):
    """Every request has the limit of `config`, and is made again at most `config.retries` times.

    `why_dead` says what became of a server that this process started, None while it lives.
    """

    def __init__(self, config: RolloutConfig, url: str, why_dead: Callable[[], str | None]) -> None:
        super().__init__()
        self.trust_env = False  # no proxy between a trainer and its server
        self._config, self._url, self._why_dead = config, url, why_dead

    def request(self, method: Any, url: Any, *arguments: Any, **options: Any) -> requests.Response:
        options.setdefault("timeout", self._config.timeout_s)
        problem = ""
        for attempt in range(self._config.retries + 1):
            if attempt:
                time.sleep(PAUSE_S)
            try:
                response = super().request(method, url, *arguments, **options)
            except requests.Timeout:
                problem = f"no answer within rollout.timeout_s={options['timeout']:g}"
            except requests.RequestException as error:
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            else:
                if response.status_code < 500:
                    return response
                problem = f"status {response.status_code}: {' '.join(response.text.split())[:200]}"
            if dead := self._why_dead():
                raise RolloutError(f"the server of the rollouts at {self._url} has ended: {dead}")
        raise RolloutError(f"the server of the rollouts at {self._url} failed {self._config.retries + 1} times at "
                           f"{method.upper()} {urlparse(str(url)).path}, last: {problem}; see that it runs and answers")


class PolicyClient(VLLMClient):
    """TRL's client on a `Session`; what goes wrong is a `RolloutError`."""

    def __init__(self, url: str, config: RolloutConfig, group_port: int, why_dead: Callable[[], str | None]) -> None:
        # Not TRL's own: its session has no limits and its first calls are made in there.
        self.base_url, self.host, self.group_port = url.rstrip("/"), str(urlparse(url).hostname), group_port
        self.communicator, self._updating_weights = None, False
        self.session = Session(config, url, why_dead)
        served = self._get(f"{self.base_url}/v1/models")["data"][0]
        self.model: str = served["id"]
        self.root: str = served.get("root") or self.model
        """Where the server itself took the weights from."""
        self.max_length: int = served["max_model_len"]

    def _get(self, url: str, **options: Any) -> Any:
        return self._body(self.session.get(url, **options))

    def _post(self, url: str, **options: Any) -> Any:
        return self._body(self.session.post(url, **options))

    def _body(self, response: requests.Response) -> Any:
        if response.status_code == 404:
            raise RolloutError(f"the server at {self.base_url} has no {urlparse(response.url).path}; start it with "
                               "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve")
        if response.status_code != 200:
            raise RolloutError(f"the server at {self.base_url} refuses {urlparse(response.url).path}: "
                               f"{' '.join(response.text.split())[:300]}")
        try:
            return response.json()
        except ValueError:
            return response.text

    def reload(self, folder: str) -> None:
        """Take these weights out of the safetensors files in `folder`, which the server must be able to read."""
        self._post(f"{self.base_url}/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": folder}})
        self.reset_prefix_cache()

    def load_adapter(self, folder: str) -> None:
        self._post(f"{self.base_url}/v1/load_lora_adapter",
                   json={"lora_name": ADAPTER, "lora_path": folder, "load_inplace": True})
        self.reset_prefix_cache()

    def complete(self, prompts: list[list[int]], model: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """The server's answer for each prompt, in order."""
        return self._post(f"{self.base_url}/v1/completions", json={
            "model": model, "prompt": prompts, "return_token_ids": True, **settings})["choices"]
