"""The client of one server `vllm serve`: TRL's client with a time limit on every call and a limited number of repeats."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlparse

from trl.generation.vllm_client import VLLMClient

from routed_rl.config import RolloutConfig
from routed_rl.errors import RolloutError
from routed_rl.web import Answer, NoAnswer, Refused, Server

LARGEST = 4 * 2**30
"""The largest size of an answer in bytes; an answer holds completions with their probabilities."""
COMPLETIONS = "/v1/completions"


class Session(Server):
    """Takes the place of the `requests.Session` of TRL's client. Each call keeps to the limits of `config`. If this process has
    started the server, `why_dead` returns the reason why the server has ended, or None while the server lives."""

    def __init__(self, config: RolloutConfig, url: str, why_dead: Callable[[], str | None]) -> None:
        super().__init__(url, config.timeout_s, config.retries + 1, LARGEST)
        self._why_dead = why_dead

    def get(self, url: str, params: dict[str, str] | None = None) -> Answer:
        return self._request("GET", url + (f"?{urlencode(params)}" if params else ""), None)

    def post(self, url: str, json: Any = None) -> Answer:
        return self._request("POST", url, json)

    def _request(self, method: str, url: str, body: Any) -> Answer:
        path = url.removeprefix(self.place)
        try:
            return self.ask(method, path, body)
        except NoAnswer as problem:
            raise RolloutError(f"the server of the rollouts at {self.place} failed {self.attempts} times at {method} "
                               f"{urlparse(path).path}, last: {problem} (rollout.timeout_s={self.timeout_s:g}); see that it runs "
                               "and answers") from None
        except Refused as problem:
            raise RolloutError(f"the server of the rollouts cannot be used: {problem}") from None

    def failed(self) -> None:
        if dead := self._why_dead():
            raise RolloutError(f"the server of the rollouts at {self.place} has ended: {dead}")


class PolicyClient(VLLMClient):
    """TRL's client, which sends its requests through a `Session`. It raises `RolloutError` for every failure. `group_port` is the
    port of the NCCL group by which the server gets weights."""

    def __init__(self, url: str, config: RolloutConfig, group_port: int, why_dead: Callable[[], str | None]) -> None:
        # Does not call TRL's own `__init__`, whose session has no limits and which makes its first calls there.
        self.base_url, self.host, self.group_port = url.rstrip("/"), str(urlparse(url).hostname), group_port
        self.communicator, self._updating_weights = None, False
        self.session: Any = Session(config, self.base_url, why_dead)
        served = self._field("/v1/models", self._get(f"{self.base_url}/v1/models"), "data", 0)
        self.own: str = self._field("/v1/models", served, "id")
        """The name by which requests ask for the server's weights without an adapter."""
        self.model = self.own
        self.root: str = served.get("root") or self.own
        """The folder or name from which the server has read its weights."""
        self.max_length: int = self._field("/v1/models", served, "max_model_len")

    def _field(self, path: str, answer: Any, *keys: str | int) -> Any:
        """The part of the answer to `path` that `keys` lead to; RolloutError if the answer has none."""
        for key in keys:
            try:
                answer = answer[key]
            except (KeyError, IndexError, TypeError):
                raise RolloutError(f"the server at {self.base_url} answers {path} without {key}; it must be a `vllm serve` "
                                   "of the version that pyproject.toml names") from None
        return answer

    def get_server_info(self) -> dict[str, Any]:
        """The server's `VllmConfig` as nested JSON. RolloutError if it lacks a field that `check_settings` reads."""
        answer = self._get(f"{self.base_url}/server_info", params={"config_format": "json"})
        settings = self._field("/server_info", answer, "vllm_config")
        for key in ("dtype", "logprobs_mode"):
            self._field("/server_info", settings, "model_config", key)
        return settings

    def _get(self, url: str, **options: Any) -> Any:
        return self._body(url, self.session.get(url, **options))

    def _post(self, url: str, **options: Any) -> Any:
        answer = self._body(url, self.session.post(url, **options))
        if url.endswith(COMPLETIONS):
            self._check_completions(options["json"], answer)
        return answer

    def _check_completions(self, asked: dict[str, Any], answer: Any) -> None:
        """Raise RolloutError if `answer` does not have as many completions as the request `asked` wants, or if a completion lacks
        a field that is read later."""
        choices, wanted = self._field(COMPLETIONS, answer, "choices"), len(asked["prompt"]) * asked.get("n", 1)
        if len(choices) != wanted:
            raise RolloutError(f"the server at {self.base_url} answers {COMPLETIONS} with {len(choices)} completions in place of "
                               f"{wanted}; see its log")
        read = [key for key in ("prompt_logprobs", "logprobs") if key in asked]
        read += [] if "prompt_logprobs" in asked else ["token_ids"]
        for choice in choices:
            for key in read:
                if not self._field(COMPLETIONS, choice, key):
                    raise RolloutError(f"the server at {self.base_url} answers {COMPLETIONS} with {key} that are empty; see its "
                                       "log")

    def _body(self, url: str, answer: Answer) -> Any:
        if answer.status_code == 404 and "error" not in answer.text:  # a model or a file that it does not find is an error
            raise RolloutError(f"the server at {self.base_url} has no {urlparse(url).path}; start it with "
                               "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve")
        if answer.status_code != 200:
            raise RolloutError(f"the server at {self.base_url} refuses {urlparse(url).path}: "
                               f"{' '.join(answer.text.split())[:300]}")
        try:
            return answer.json()
        except ValueError:
            return answer.text

    def reload(self, folder: str) -> None:
        """Make the server read its weights from the safetensors files in `folder`, which must be on a file system that the server
        can read."""
        self._post(f"{self.base_url}/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": folder}})
        self.reset_prefix_cache()

    def load_adapter(self, adapter: str, folder: str) -> None:
        self._post(f"{self.base_url}/v1/load_lora_adapter",
                   json={"lora_name": adapter, "lora_path": folder, "load_inplace": True})
        self.reset_prefix_cache()

    def complete(self, prompts: list[list[int]], model: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """The completion (an element of `choices` in the server's answer) for each prompt of token ids, in the order of the
        prompts. `model` names the model or adapter that answers; `settings` has further fields of the request to the server's
        completions endpoint."""
        return self._post(f"{self.base_url}{COMPLETIONS}", json={
            "model": model, "prompt": prompts, "return_token_ids": True, **settings})["choices"]
