"""A stand-in for `vllm serve`, for machines on which vLLM is not installed or would take the time that is measured: transformers
behind those of vLLM's addresses that a run calls. An answer depends only on the weights and on the request, so a run that is
resumed gets the same ones.

    python scripts/benchmark/standin.py MODEL [--port N] [--delay SECONDS]

`--delay`: every generation takes at least so long; what its computation leaves of that time is slept, as if another machine
worked.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

NAME = "standin"
ROOM = 512
"""Rank of the largest adapter that it takes."""


class StandIn:
    """A server on this machine, at `url`, which answers in threads of this process until `close`."""

    def __init__(self, folder: str, delay: float = 0.0, port: int = 0, *, blind: bool = False) -> None:
        """`blind`: completions are random tokens, which cost nothing, so that a generation takes `delay` seconds and no more."""
        from transformers import AutoModelForCausalLM

        self.folder, self.delay, self.blind = folder, delay, blind
        self.pushed, self.asked = list[float](), list[float]()
        """The sum of the weights after each push, and of those that answered each request of a trainer."""
        self.seconds = 0.0
        """Seconds that these requests computed."""
        self.models: dict[str, Any] = {NAME: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()}
        self.modules = sorted({name.rpartition(".")[2] for name, module in self.models[NAME].named_modules()
                               if hasattr(module, "weight")})
        self._lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def get(self, path: str) -> Any:
        if path == "/v1/models":
            length = getattr(self.models[NAME].config, "max_position_embeddings", 1024)
            return {"data": [{"id": NAME, "root": self.folder, "max_model_len": length}]}
        return {"vllm_config": {
            "model_config": {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs"}, "weight_transfer_config": None,
            "lora_config": {"max_lora_rank": ROOM, "max_loras": 2, "target_modules": self.modules}}}

    def post(self, path: str, body: Any) -> Any:
        if path == "/v1/completions":
            begin, generates = time.monotonic(), "prompt_logprobs" not in body
            with self._lock:
                computing = time.monotonic()
                answer = {"choices": self._complete(body) if generates else self._read(body)}
                self.seconds += time.monotonic() - computing if "logprobs" in body else 0.0
            time.sleep(max(self.delay - (time.monotonic() - begin), 0.0) if generates else 0.0)
            return answer
        with self._lock:
            if path == "/collective_rpc":
                state = {name: value for file in Path(body["kwargs"]["weights_path"]).glob("*.safetensors")
                         for name, value in load_file(file).items()}
                self.models[NAME].load_state_dict(state, strict=False)
                self.pushed.append(_sum(self.models[NAME]))
            elif path == "/v1/load_lora_adapter":
                self.models[body["lora_name"]] = _merged(self.models[NAME], Path(body["lora_path"]))
        return {}

    @torch.no_grad()
    def _read(self, body: Any) -> list[dict[str, Any]]:
        """The log-probability of each token of the prompts."""
        choices = []
        for ids in body["prompt"]:
            logprobs = self.models[body["model"]](torch.tensor([ids])).logits[0].log_softmax(-1)
            found = [{f"{token}": {"logprob": float(logprobs[place, token])}} for place, token in enumerate(ids[1:])]
            choices.append({"prompt_logprobs": [None, *found], "token_ids": []})
        return choices

    @torch.no_grad()
    def _complete(self, body: Any) -> list[dict[str, Any]]:
        """Completions of all prompts, `n` of each, drawn with a seed that is made of the request and the weights."""
        model, prompts = self.models[body["model"]], [ids for ids in body["prompt"] for _ in range(body.get("n", 1))]
        weights = _sum(model)
        self.asked += [weights] if "logprobs" in body else []
        generator = torch.Generator().manual_seed(zlib.crc32(f"{weights!r} {json.dumps(body)}".encode()))
        if self.blind:
            vocabulary, length = model.config.vocab_size, body["max_tokens"]
            drawn = torch.randint(vocabulary, (len(prompts), length), generator=generator).tolist()
            return [_choice(ids, tokens, [-math.log(vocabulary)] * length) for ids, tokens in zip(prompts, drawn, strict=True)]
        width = max(map(len, prompts))
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        next_BT, stop, temperature = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]), {}, body["temperature"]
        rows: list[list[int]] = [[] for _ in prompts]
        found: list[list[float]] = [[] for _ in prompts]
        cache: Any = None
        for _ in range(body["max_tokens"]):
            place_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -next_BT.shape[1]:]
            output = model(next_BT, attention_mask=mask_BT, position_ids=place_BT, past_key_values=cache, use_cache=True)
            cache, logits_BV = output.past_key_values, output.logits[:, -1].float()
            logprobs_BV = (logits_BV / (temperature or 1.0)).log_softmax(-1)
            drawn_B = torch.multinomial(logprobs_BV.exp(), 1, generator=generator)[:, 0] if temperature else logits_BV.argmax(-1)
            for row, token in enumerate(drawn_B.tolist()):
                if row not in stop:
                    rows[row].append(token)
                    found[row].append(float(logprobs_BV[row, token]))
                    if token in body["stop_token_ids"]:
                        stop[row] = True
            if len(stop) == len(prompts):
                break
            next_BT, mask_BT = drawn_B[:, None], torch.cat([mask_BT, torch.ones_like(drawn_B)[:, None]], 1)
        return [_choice(*each) for each in zip(prompts, rows, found, strict=True)]


def _choice(prompt: list[int], tokens: list[int], logprobs: list[float]) -> dict[str, Any]:
    """A completion as vLLM answers it."""
    return {"prompt_token_ids": prompt, "token_ids": tokens, "logprobs": {
        "tokens": [f"token_id:{token}" for token in tokens], "token_logprobs": logprobs, "top_logprobs": [None] * len(tokens)}}


def _sum(model: Any) -> float:
    return float(sum(parameter.detach().double().sum() for parameter in model.parameters()))


@torch.no_grad()
def _merged(model: Any, folder: Path) -> Any:
    """A copy of the model with an adapter added to its weights; the adapter's scaling is 1."""
    merged, tensors = copy.deepcopy(model), load_file(folder / "adapter_model.safetensors")
    for name, up in tensors.items():
        if ".lora_B." not in name:
            continue
        module = merged.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_B.weight"))
        added: Tensor = up @ tensors[name.replace(".lora_B.", ".lora_A.")]
        module.weight.add_(added if module.weight.shape == added.shape else added.mT)
    return merged


def _handler(server: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(server.get(self.path.partition("?")[0]))

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(server.post(self.path, json.loads(sent) if sent else {}))

        def _answer(self, body: Any) -> None:
            sent = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", f"{len(sent)}")
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()
    server = StandIn(given.model, given.delay, given.port)
    print(server.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
