"""Where the subspace comes from, and when it is a good one."""

from dataclasses import dataclass, field

from routed_rl.config.checks import check_at_least, check_known
from routed_rl.errors import ConfigError


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
        check_at_least("subspace.check", self, {"auroc": 0, "stability": 0, "p": 0, "random": 1, "axes": 0, "answers": 2,
                                                 "strength": 0})


@dataclass(kw_only=True, slots=True)
class DegradeConfig:
    angle: float = 0.0
    """Degrees by which every direction, and the axes with them, is turned away from the personas; 0: not at all."""
    missing: float = 0.0
    """Share of each layer's directions that is left out, rounded down."""

    def __post_init__(self) -> None:
        check_at_least("subspace.degrade", self, {"angle": 0, "missing": 0})
        if self.angle > 90:
            raise ConfigError(f"subspace.degrade.angle must lie in [0, 90] degrees, got {self.angle}")
        if self.missing > 1:
            raise ConfigError(f"subspace.degrade.missing must lie in [0, 1], got {self.missing}; 0.5 is every second direction")


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
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    """Makes the subspace worse on purpose, for experiments on what an imperfect interpretation costs."""
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
        check_known("subspace.method", [self.method], METHODS)
        check_known("subspace.layout", [self.layout], ("spanning", "per_layer", "shared"))
        check_known("subspace.hook", [self.hook], HOOKS)
        check_known("subspace.tokens", [self.tokens or "prompt_end"], ("prompt_end", "response_mean"))
        check_known("subspace.persona_place", [self.persona_place], ("system", "user"))
        check_at_least("subspace", self, {"positions": 1, "batch_size": 1, "last_weight": 0, "drop_below": 0, "held_out": 0,
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
