"""JSON over HTTP with one server, with a time limit on every call, repeats if a repeat is safe, and no secret in any message."""

import html
import json
import math
import os
from typing import Any
from urllib.parse import quote

from routed_rl.envs.host.isolation import LIMIT
from routed_rl.errors import ConfigError
from routed_rl.web import Answer, NoAnswer, Refused, Server

LARGEST = 64 * 2**20
"""The largest size of an answer in bytes; a larger one is an error."""
PART = 0.9
"""The share of the time limit of the environment's process that one call, with all of its attempts, may take."""
LONG_TOKEN = 6
"""A token of at least this many characters is removed from answers wherever it occurs. A shorter one may be an ordinary word and
is removed only after "Bearer"."""


class JsonServer(Server):
    """Client of one server: `call(path, body)` posts JSON and returns the JSON object in the answer.

    `timeout_s` limits each attempt as a whole, so a server that does not answer costs about `attempts` times that, plus the
    pauses. In an environment's own process all attempts end within `env.NAME.isolate.timeout_s`, so that there is still time to
    report the server's problem. `token_env` names an environment variable, whose value is sent as a bearer token; wherever the
    server repeats the token, `***` is shown.
    """

    def __init__(self, url: str, timeout_s: float = 30.0, attempts: int = 3, token_env: str | None = None) -> None:
        if type(attempts) is not int or attempts < 1 or isinstance(timeout_s, bool) or not (
                isinstance(timeout_s, (int, float)) and 0 < timeout_s < math.inf):
            raise ConfigError(f"timeout_s must be > 0 and attempts >= 1, got {timeout_s} and {attempts}")
        super().__init__(url, float(timeout_s), attempts, LARGEST)
        self.whole_s = PART * float(os.environ.get(LIMIT, math.inf))
        if self.parts.username or self.parts.password:
            raise ConfigError(f"url has a password for {self.parts.hostname}; put it into an environment variable, set "
                              "token_env=NAME")
        self.token_env = token_env
        if token_env and not self._token():
            raise ConfigError(f"token_env={token_env}: there is no such environment variable; export it, or leave token_env out")
        if not all("!" <= letter <= "~" for letter in self._token()):
            raise ConfigError(f"token_env={token_env}: its value has characters that no header can carry (spaces, ends of lines, "
                              "letters beyond ASCII); export the token alone")

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post `body` to `path` below the server's address and return the JSON object in the answer. ConnectionError if all
        attempts fail. `Refused`, with the server's own words, if the server rejects the request."""
        try:
            return self.ask("POST", path, body)
        except NoAnswer as problem:
            raise ConnectionError(f"{self.place}{path} gave no answer in {self.attempts} attempts of {self.timeout_s:g} s: "
                                  f"{problem}; is the server up? (timeout_s and attempts are settings)") from None

    def accept(self, path: str, answer: Answer) -> dict[str, Any]:
        """The JSON object in an answer. `Refused` if the status is not 200 or the body is no JSON object. ValueError, so that the
        request is repeated, if the body is no JSON because it may have been cut short."""
        if answer.status_code != 200:
            raise Refused(f"{self.place}{path} refused: status {answer.status_code}: {self.shown(answer.text)}")
        try:
            found = self._clean(answer.json())
        except (ValueError, RecursionError):
            problem = f"{self.place}{path} answered with what is no JSON: {self.shown(answer.text)}"
            raise (Refused if answer.whole else ValueError)(problem) from None
        if not isinstance(found, dict):
            raise Refused(f"{self.place}{path} answered with a {type(found).__name__}, not a JSON object")
        return found

    def headers(self) -> dict[str, str]:
        token = self._token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def shown(self, text: str) -> str:
        """`text` without the token, in whatever form it is written, because a server may repeat what it was sent."""
        if token := self._token():
            for written in (token, json.dumps(token)[1:-1], repr(token)[1:-1], html.escape(token), quote(token, safe="")):
                text = text.replace(written, "***")
        return super().shown(text)

    def _clean(self, value: Any) -> Any:
        if not (token := self._token()):
            return value
        if isinstance(value, str):
            return value.replace(token if len(token) >= LONG_TOKEN else f"Bearer {token}", "***")
        if isinstance(value, dict):
            return {self._clean(key): self._clean(inner) for key, inner in value.items()}
        return [self._clean(inner) for inner in value] if isinstance(value, list) else value

    def _token(self) -> str:
        return os.environ.get(self.token_env or "", "").strip()
