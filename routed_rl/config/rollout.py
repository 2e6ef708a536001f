"""Settings of the engine that generates the completions."""

from dataclasses import dataclass, field

from routed_rl.config.checks import AUTO, check_at_least, check_known, check_shares
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class ParityConfig:
    every: int = 10
    """Steps between two checks that the engine's log-probabilities agree with the trainer's; 0: no such checks. The first rollout
    of a run, and of a resumed run, is checked in any case."""
    limit: float | None = None
    """Largest accepted difference between the two log-probabilities of a token, in nats; null for 1e-3, or for 0.5 if the engine
    or the trainer computes in bfloat16."""
    prompts: int = 8
    """Number of sequences on which the log-probabilities are compared. Each is a task's prompt followed by fixed random
    tokens."""

    def __post_init__(self) -> None:
        floors: dict[str, float] = {"every": 0, "prompts": 1}
        check_at_least("rollout.parity", self, floors if self.limit is None else floors | {"limit": 0})


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    engine: str = "transformers"
    """The engine that generates the completions: transformers, vllm_colocate (vLLM in the trainer's process), or vllm_server (one
    or several `vllm serve`)."""
    urls: list[str] = field(default_factory=list)
    """For vllm_server: addresses of the servers, http://HOST:PORT, among which the prompts are divided."""
    launch: bool = False
    """For vllm_server: whether a server is started on this machine, and stopped at the end."""
    dtype: str = "float32"
    """Type of the weights that vLLM computes with: float32 or bfloat16; auto for `model.dtype`."""
    memory_gb: int = 1
    """Size of vLLM's cache of keys and values if vLLM computes on a CPU, in GiB."""
    gpu_memory: float = 0.3
    """Share of a GPU's memory that vLLM may take, from 0 to 1."""
    sleep: bool = False
    """For vllm_colocate on a GPU: true to have vLLM free its share of the GPU's memory while a step trains. Its weights then wait
    in the machine's own memory."""
    max_length: int | None = None
    """Largest number of tokens of a prompt and its completion together in vLLM; null for as many as the model allows."""
    timeout_s: float = 300
    """Seconds that a vLLM server may take to answer one call."""
    start_timeout_s: float = 600
    """Seconds that a vLLM server started here (`launch`) may take until it answers."""
    retries: int = 2
    """How often a failed call to a vLLM server is repeated."""
    ahead: int = 0
    """For vllm_server: 1 to have the next completions generated while a step trains, by weights that are one step older; 0 to
    generate between the steps."""
    parity: ParityConfig = field(default_factory=ParityConfig)
    """The comparison of the engine's log-probabilities with the trainer's."""

    def __post_init__(self) -> None:
        check_known("rollout.engine", [self.engine], ("transformers", "vllm_colocate", "vllm_server"))
        check_known("rollout.dtype", [self.dtype], ("float32", "bfloat16", AUTO))
        check_at_least("rollout", self, {"memory_gb": 1, "gpu_memory": 0.01, "timeout_s": 0.1, "start_timeout_s": 0.1,
                                         "retries": 0})
        check_shares("rollout", self, "gpu_memory")
        if self.engine != "vllm_server" and (self.urls or self.launch):
            raise ConfigError(f"rollout.urls and rollout.launch are for servers, and rollout.engine={self.engine} has none; "
                              "set rollout=vllm_server")
        if self.ahead not in (0, 1):
            raise ConfigError(f"rollout.ahead must be 0 or 1, got {self.ahead}")
        if self.ahead and self.engine != "vllm_server":
            raise ConfigError(f"rollout.ahead=1 asks a server for completions while a step trains, and rollout.engine="
                              f"{self.engine} has none; set rollout=vllm_server, or rollout.ahead=0")
        if self.sleep and self.engine != "vllm_colocate":
            raise ConfigError(f"rollout.sleep=true frees the memory of an engine in the trainer's process, and rollout.engine="
                              f"{self.engine} has none there; set rollout=vllm_colocate, or rollout.sleep=false")
        if self.urls and self.launch:
            raise ConfigError(f"rollout.launch=true starts a server, but rollout.urls={self.urls} names some; set one of them")
        if wrong := [url for url in self.urls if not url.startswith(("http://", "https://"))]:
            raise ConfigError(f"rollout.urls: {wrong[0]} is no address; write http://HOST:PORT")
