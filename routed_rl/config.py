"""Every setting and its default. No torch here: `routed-rl --help` and bad overrides must answer at once.

`trainer` is a free mapping: TRL's own `GRPOConfig` fields, checked against that class when the trainer is built.
`env` maps a name to `path`, `weight`, `probe` and the keyword arguments of the class.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    path: str = ""
    """A folder in Hugging Face format, a hub name, or `gguf:` and a file or an installed distribution that holds one."""
    dtype: str = "float32"
    """Of the weights; only float32. `trainer.bf16=true` computes in bf16 with float32 weights."""
    freeze: list[str] = field(default_factory=lambda: ["embedding", "unembedding", "final_norm", "post_norm"])
    """What is not trained: any of embedding (learned positions included), unembedding, final_norm, post_norm."""

    def __post_init__(self) -> None:
        if self.dtype != "float32":
            raise ConfigError(f"model.dtype={self.dtype} is not supported: small updates are lost in it and leak into the "
                              "subspace; keep model.dtype=float32 and set trainer.bf16=true")
        _check_known("model.freeze", self.freeze, ("embedding", "unembedding", "final_norm", "post_norm"))


@dataclass(kw_only=True, slots=True)
class SubspaceCheckConfig:
    auroc: float = 0.8
    """Held-out separation that the first axis must reach at its best layer."""
    stability: float = 0.5
    """Mean squared cosine between the bases of two halves of the pairs that every layer must reach."""
    p: float = 0.05
    """The causal check: the corrected p value of the best axis must be at most this."""
    random: int = 64
    """Random directions of the same norm that an axis is compared with; more where the correction for `axes` needs them."""
    axes: int = 3
    """How many of the first axes are steered along; each is a test that the p value is corrected for."""
    answers: int = 16
    """Reference questions that are used."""
    layer: int | None = None
    """Where to steer; null for the layer at which the first axis separates best."""
    strength: float = 1.0
    """Length of the push, in units of the axis' scale."""

    def __post_init__(self) -> None:
        _check_at_least("subspace.check", self, {"auroc": 0, "stability": 0, "p": 0, "random": 1, "axes": 0, "answers": 2,
                                                 "strength": 0})


METHODS = ("mean_difference", "pca", "random", "assistant_axis", "persona_vectors", "sae", "file", "union")
HOOKS = ("resid_pre", "resid_mid", "resid_post")


@dataclass(kw_only=True, slots=True)
class SubspaceConfig:
    method: str = "mean_difference"
    """mean_difference, pca, random, assistant_axis, persona_vectors, sae, file, or union."""
    prompts: str | None = None
    """JSON lines of {"positive": ..., "negative": ...}: text or chat messages; positive is the persona that must not grow."""
    known_prompts: dict[str, str] = field(default_factory=dict)
    """Prompts that go with a `model.path`, for when `prompts` is not set."""
    path: str | None = None
    """For method=file: folder of an extracted subspace, safetensors file of vectors, PEFT adapter, or control vector (GGUF)."""
    hook: str = "resid_post"
    """Where a layer's stream is read: resid_pre (its input), resid_mid (between attention and MLP), resid_post (its output)."""
    tokens: str | None = None
    """prompt_end: the last `positions` tokens of a prompt; response_mean: mean over a response that the model writes; null
    for the method's own, which is response_mean for assistant_axis and persona_vectors and prompt_end for the others."""
    response_tokens: int = 16
    """Tokens of a response, at most."""
    temperature: float = 1.0
    """Of the responses; 1 is on-policy."""
    held_out: int = 256
    """Pairs whose activations are kept for the held-out figures; memory is bounded by it, not by the number of prompts."""
    roles_file: str | None = None
    """JSON lines of {"name": ..., "prompt": ...}, for assistant_axis."""
    traits_file: str | None = None
    """JSON lines of {"name": ..., "elicit": ..., "suppress": ...}, for persona_vectors."""
    questions_file: str | None = None
    """JSON lines of {"text": ...}: what roles and traits are asked."""
    roles: int | None = 24
    """The first so many roles of the file; null for all."""
    traits: int | None = None
    """The first so many traits of the file; null for all."""
    only: list[str] = field(default_factory=list)
    """Names of the roles or traits to use, in this order; empty for the first ones."""
    questions: int = 16
    """The first so many questions of the file."""
    role_components: int = 3
    """assistant_axis with rank=null: leading components of the roles beside the axis, at most."""
    persona_place: str = "system"
    """Where a role or trait is put: system (a system message) or user (before the question, for templates without one)."""
    weights: str | None = None
    """For method=sae: safetensors of a sparse autoencoder, or a SAELens folder (cfg.json and sae_weights.safetensors)."""
    latents: list[int] = field(default_factory=list)
    """For method=sae: which latents are the axes, in this order."""
    layer: int | None = None
    """For sae and file: the layer that vectors belong to which do not say so themselves; null: of a file, all layers."""
    everywhere: bool = False
    """For sae and file: vectors of one layer stand for all layers; otherwise later layers have no basis."""
    flip: bool = False
    """For sae and file: turn the vectors around, where they point away from the persona that must not grow."""
    parts: list[str] = field(default_factory=list)
    """For method=union: folders of subspaces or names of methods, in the order in which their axes are orthonormalised."""
    compare_to: list[str] = field(default_factory=list)
    """Folders of other subspaces whose axes `extract --check` compares with."""
    answers: str | None = None
    """JSON lines of {"prompt", "positive", "negative"}: reference answers of both personas, for the causal check."""
    known_answers: dict[str, str] = field(default_factory=dict)
    """Reference answers that go with a `model.path`, for when `answers` is not set."""
    check: SubspaceCheckConfig = field(default_factory=SubspaceCheckConfig)
    rank: int | None = None
    """Directions per layer; null for all that are not weaker than `weakest`."""
    weakest: float = 0.15
    """With rank=null: the singular value of a layer's weakest direction, as a share of its largest."""
    layout: str = "spanning"
    """spanning: a writer's basis spans its own and all later layers; per_layer: its own; shared: one for all layers."""
    shared_rank: int | None = None
    """Rank of the one basis of layout=shared, at most; null for all that `drop_below` leaves."""
    drop_below: float = 0.1
    """Of the union of several layers' directions, weighted by strength: singular values under this share of the largest go."""
    positions: int = 8
    """How many of a prompt's last tokens count, where both prompts of a pair share them; the very last always does."""
    last_weight: float = 3.0
    """Weight of the last position against 1 for the others."""
    batch_size: int = 32
    """Prompts per forward pass of the extraction."""

    def __post_init__(self) -> None:
        _check_known("subspace.method", [self.method], METHODS)
        _check_known("subspace.layout", [self.layout], ("spanning", "per_layer", "shared"))
        _check_known("subspace.hook", [self.hook], HOOKS)
        _check_known("subspace.tokens", [self.tokens or "prompt_end"], ("prompt_end", "response_mean"))
        _check_known("subspace.persona_place", [self.persona_place], ("system", "user"))
        _check_at_least("subspace", self, {"positions": 1, "batch_size": 1, "last_weight": 0, "drop_below": 0, "held_out": 0,
                                           "response_tokens": 1, "temperature": 0, "questions": 1, "role_components": 0})
        for key in ("rank", "shared_rank", "roles", "traits", "layer"):
            if (value := getattr(self, key)) is not None and (not isinstance(value, int) or value < 0):
                raise ConfigError(f"subspace.{key} must be a whole number >= 0 or null, got {value}")
        if not 0 < self.weakest <= 1:
            raise ConfigError(f"subspace.weakest must lie in (0, 1], got {self.weakest}")
        if self.drop_below >= 1:
            raise ConfigError(f"subspace.drop_below must be under 1, got {self.drop_below}")
        if self.method == "file" and not self.path:
            raise ConfigError("subspace.method=file needs subspace.path=FOLDER, as written by `routed-rl extract`, or a file of "
                              "vectors, an adapter, or a control vector")
        if self.method == "sae" and not (self.weights and self.latents):
            raise ConfigError("subspace.method=sae needs subspace.weights=FILE and subspace.latents=[1,2]")
        if self.method == "union" and len(self.parts) < 2:
            raise ConfigError(f"subspace.method=union needs two parts or more, got subspace.parts={self.parts}; write "
                              "subspace.parts=[FOLDER,assistant_axis]")

    def prompts_for(self, model_path: str) -> str | None:
        """The prompts file that is set, else the one known to go with the model."""
        return self.prompts or self.known_prompts.get(model_path)

    def answers_for(self, model_path: str) -> str | None:
        """The file of reference answers that is set, else the one known to go with the model."""
        return self.answers or self.known_answers.get(model_path)


@dataclass(kw_only=True, slots=True)
class QuarantineConfig:
    learning_rate: float = 0.03
    """Raw step of the quarantine's optimizer, before the bound; coefficient per update."""
    max_shift: float | None = 0.64
    """Bound on one step, all targets together, in units of the gap between the personas; null for the raw rate alone."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first moments and of the one second moment, per step."""
    eps: float = 1e-12
    """Added to the root of the second moment."""
    sample_tokens: int = 256
    """Real tokens per micro-batch over which the bound's root mean square is taken."""

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise ConfigError(f"routing.quarantine.betas takes two numbers, got {self.betas}")
        self.betas = (float(self.betas[0]), float(self.betas[1]))
        _check_at_least("routing.quarantine", self, {"learning_rate": 0, "eps": 0, "sample_tokens": 1})
        if self.max_shift is not None and self.max_shift <= 0:
            raise ConfigError(f"routing.quarantine.max_shift must be > 0 or null, got {self.max_shift}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"routing.quarantine.betas must lie in [0, 1), got {self.betas}")


@dataclass(kw_only=True, slots=True)
class RandomControlConfig:
    every: int = 16
    """Steps between two measurements of the ledger against random bases; 0 for never."""
    draws: int = 16
    """Random bases per measurement; isotropic and covariance-matched draws take turns."""

    def __post_init__(self) -> None:
        _check_at_least("routing.random_control", self, {"every": 0, "draws": 1})


@dataclass(kw_only=True, slots=True)
class RoutingConfig:
    mode: str = "route"
    """none, observe, route, or erase."""
    cotangent: str | None = None
    """contained or open; null for the mode's own."""
    quarantine: QuarantineConfig = field(default_factory=QuarantineConfig)
    random_control: RandomControlConfig = field(default_factory=RandomControlConfig)

    def __post_init__(self) -> None:
        _check_known("routing.mode", [self.mode], ("none", "observe", "route", "erase"))
        if self.cotangent is not None:
            _check_known("routing.cotangent", [self.cotangent], ("contained", "open"))


@dataclass(kw_only=True, slots=True)
class RuleConfig:
    limit: float | None = None
    """What may not be passed; null: the rule is off."""
    allowance: float = 0.0
    """Of rules that sum up: what a step may add without being counted."""
    patience: int = 1
    """Steps in a row past the limit."""
    action: str = "report"
    """report, or halt: stop the run after a checkpoint."""

    def __post_init__(self) -> None:
        _check_known("monitor action", [self.action], ("report", "halt"))
        _check_at_least("monitor rule", self, {"allowance": 0, "patience": 1})


@dataclass(kw_only=True, slots=True)
class MonitorConfig:
    warmup: int = 5
    """Steps after which verdicts begin; what is summed up counts from the start."""
    axis: str | None = None
    """Axis of the subspace along which a shift counts; null for the first, which points to the positive persona."""
    shift: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.5))
    """An environment's persona shift so far, in units of the gap between the personas."""
    change: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.2, allowance=0.005))
    """Its growth, summed up: finds where a slow shift began."""
    push: RuleConfig = field(default_factory=RuleConfig)
    """An environment's share of the quarantine's growth in a step."""
    gap: RuleConfig = field(default_factory=partial(RuleConfig, limit=1.0, allowance=0.2))
    """Paid reward minus true score, summed up."""
    energy: RuleConfig = field(default_factory=RuleConfig)
    """Routed energy over the mean of isotropic random bases."""
    size: RuleConfig = field(default_factory=RuleConfig)
    """|C| over the norm of the retained change."""
    share: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.9))
    """The routed share of the targets' gradient energy."""
    collapse: RuleConfig = field(default_factory=partial(RuleConfig, limit=0.95, patience=5))
    """Share of groups that are all paid alike."""

    def __post_init__(self) -> None:
        _check_at_least("monitor", self, {"warmup": 0})

    def reporting(self) -> MonitorConfig:
        """The same rules, none of which halts."""
        rules = {each.name: dataclasses.replace(getattr(self, each.name), action="report")
                 for each in dataclasses.fields(self) if section(each) is not None}
        return dataclasses.replace(self, **rules)


@dataclass(kw_only=True, slots=True)
class ParityConfig:
    every: int = 10
    """Steps between two checks; the first rollout of a run, and of a resume, is always checked. 0: only those."""
    limit: float | None = None
    """Largest difference of a log-probability that is let pass; null for 1e-3 in float32 and 0.5 in bfloat16."""
    prompts: int = 8
    """Sequences that are compared: a task's prompt and fixed random tokens after it."""

    def __post_init__(self) -> None:
        floors: dict[str, float] = {"every": 0, "prompts": 1}
        _check_at_least("rollout.parity", self, floors if self.limit is None else floors | {"limit": 0})


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    engine: str = "transformers"
    """transformers, vllm_colocate (vLLM in the trainer's process), or vllm_server (one or several `vllm serve`)."""
    urls: list[str] = field(default_factory=list)
    """Of the servers, for vllm_server: http://HOST:PORT. Prompts are shared out among them."""
    launch: bool = False
    """Start a server on this machine for vllm_server, and stop it at the end."""
    dtype: str = "float32"
    """Of the weights that vLLM computes with: float32 or bfloat16."""
    memory_gb: int = 1
    """vLLM's cache on a CPU, in GiB."""
    gpu_memory: float = 0.3
    """Share of a GPU's memory that vLLM may take."""
    max_length: int | None = None
    """Tokens of a prompt and its completion; null for what the model allows."""
    timeout_s: float = 300
    """Seconds that a server may take to answer one call."""
    start_timeout_s: float = 600
    """Seconds that a server may take to come up."""
    retries: int = 2
    """How often a call to a server is made again."""
    parity: ParityConfig = field(default_factory=ParityConfig)

    def __post_init__(self) -> None:
        _check_known("rollout.engine", [self.engine], ("transformers", "vllm_colocate", "vllm_server"))
        _check_known("rollout.dtype", [self.dtype], ("float32", "bfloat16"))
        _check_at_least("rollout", self, {"memory_gb": 1, "gpu_memory": 0.01, "timeout_s": 0.1, "retries": 0})
        if self.engine != "vllm_server" and (self.urls or self.launch):
            raise ConfigError(f"rollout.urls and .launch are for servers, rollout.engine={self.engine}; set rollout=vllm_server")
        if self.urls and self.launch:
            raise ConfigError(f"rollout.launch=true starts a server, but rollout.urls={self.urls} names some; set one of them")
        if wrong := [url for url in self.urls if not url.startswith(("http://", "https://"))]:
            raise ConfigError(f"rollout.urls: {wrong[0]} is no address; write http://HOST:PORT")


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    samples: int = 2000
    """Completions per environment and model, one per task."""
    batch_size: int = 500
    """Completions generated at once."""
    temperature: float = 1.0
    max_failures: float = 0.05
    """Share of completions an environment may fail to score, in training and in evaluation, before the run stops."""

    def __post_init__(self) -> None:
        _check_at_least("evaluation", self, {"samples": 0, "batch_size": 1, "temperature": 0, "max_failures": 0})


@dataclass(kw_only=True, slots=True)
class AuditConfig:
    """Of `routed-rl audit`, whose options these are; not part of a run's settings."""

    samples: int = 200
    """Completions per environment and model."""
    prompts: int = 64
    """Prompts per environment at whose ends the stream is compared."""
    blocks: int = 8
    """Groups of neighbouring layers, at most."""

    def __post_init__(self) -> None:
        _check_at_least("audit", self, {"samples": 1, "prompts": 1, "blocks": 1})


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    project: str = "routed_rl"
    """wandb project; wandb itself is asked for with trainer.report_to=wandb."""
    completions: bool = True
    """Keep every completion with its scores in completions/*.parquet."""


@dataclass(kw_only=True, slots=True)
class Config:
    name: str = "run"
    """Goes into the default folder's name."""
    seed: int = 0
    out: str | None = None
    """The run folder; null for runs/<time>-<name>."""
    discard: bool = True
    """Write the deployed model to RUN/deployed at the end."""
    model: ModelConfig = field(default_factory=ModelConfig)
    subspace: SubspaceConfig = field(default_factory=SubspaceConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    env: dict[str, dict[str, Any]] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def from_mapping(mapping: dict[str, Any], cls: type = Config, prefix: str = "") -> Any:
    """Build `cls` from nested plain mappings; an unknown key is refused with the closest known one."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in fields:
            raise ConfigError(unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in fields]))
        if (inner := section(fields[key])) is not None:
            defaults = getattr(fields[key].default_factory, "keywords", {})
            value = from_mapping(defaults | (value or {}), inner, f"{prefix}{key}.")
        values[key] = value
    return cls(**values)


def section(setting: dataclasses.Field[Any]) -> type | None:
    """The dataclass of a setting that is a section of its own; None for a plain one."""
    inner = getattr(setting.default_factory, "func", setting.default_factory)
    return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None


def unknown(key: str, known: list[str]) -> str:
    """The message for an unknown setting: what is close, or what there is."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown setting {key}; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}")


def _check_known(name: str, values: list[str], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise ConfigError(f"{name}={value} is not known; choose from {', '.join(known)}")


def _check_at_least(prefix: str, config: Any, floors: dict[str, float]) -> None:
    for key, floor in floors.items():
        value = getattr(config, key)
        if not isinstance(value, (int, float)) or value < floor:
            raise ConfigError(f"{prefix}.{key} must be a number >= {floor}, got {value}")
