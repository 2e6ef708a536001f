"""Settings of how the subspace is found, and of when it counts as a good one."""

from dataclasses import dataclass, field

from routed_rl.config.axes import AxesConfig
from routed_rl.config.checks import check_at_least, check_known, check_shares
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class SubspaceCheckConfig:
    auroc: float = 0.8
    """Smallest AUROC with which the subspace counts as good. The AUROC says how well the first axis, at its best layer, tells the
    personas apart on held-out prompts."""
    stability: float = 0.5
    """Smallest mean squared principal cosine, between the two bases that are fitted to two halves of the pairs, with which the
    subspace counts as good. The worst layer decides."""
    p: float = 0.05
    """Largest p value that the best axis may have in the causal check, after correction for the number of axes. This check adds
    axes and random directions to the stream and compares how much they change the likelihood of the personas' answers."""
    random: int = 64
    """Smallest number of random directions, of the same norm as the axes, with which the causal check compares each axis. More
    are drawn if the correction for the number of axes (`axes`) needs them."""
    axes: int = 3
    """Number of axes, counted from the first, that the causal check steers along, and for which the p value is corrected; 0: no
    causal check."""
    answers: int = 16
    """Number of reference answers (lines of the file `subspace.answers`) that the causal check uses."""
    layer: int | None = None
    """Layer at which the causal check steers; null for the layer at which the first axis separates best."""
    strength: float = 1.0
    """Length of the vector that the causal check adds to the stream, in units of the gap between the personas at the layer where
    it is added."""

    def __post_init__(self) -> None:
        check_shares("subspace.check", self, "auroc", "stability", "p")
        check_at_least("subspace.check", self, {"random": 1, "axes": 0, "answers": 2, "strength": 0})


@dataclass(kw_only=True, slots=True)
class DegradeConfig:
    angle: float = 0.0
    """Angle in degrees, from 0 to 90, by which every direction of the subspace, and every axis with it, is turned towards a
    random direction outside the subspace; 0: not at all."""
    missing: float = 0.0
    """Share of each layer's directions that is left out at random, from 0 to 1. The number of directions that are left out is
    rounded down."""

    def __post_init__(self) -> None:
        check_at_least("subspace.degrade", self, {"angle": 0, "missing": 0})
        if self.angle > 90:
            raise ConfigError(f"subspace.degrade.angle must lie in [0, 90] degrees, got {self.angle}")
        if self.missing > 1:
            raise ConfigError(f"subspace.degrade.missing must lie in [0, 1], got {self.missing}; 0.5 is every second direction")


UNNAMED = ("dct", "dpo", "bipo")
"""Methods that find axes without names, by adding vectors to the outputs of layers."""
METHODS = ("mean_difference", "pca", "random", "assistant_axis", "persona_vectors", "sae", "file", "union", *UNNAMED)
HOOKS = ("resid_pre", "resid_mid", "resid_post")


@dataclass(kw_only=True, slots=True)
class SubspaceConfig(AxesConfig):
    method: str = "mean_difference"
    """How the subspace is found: mean_difference, pca, random, assistant_axis, persona_vectors, sae, file, union, dct, dpo, or
    bipo."""
    prompts: str | None = None
    """File of contrast prompts: JSON lines of {"positive": ..., "negative": ...}, each text or chat messages; positive is the
    persona that must not grow. null for the file that `known_prompts` names for the model."""
    known_prompts: dict[str, str] = field(default_factory=dict)
    """Maps a `model.path` to the file of contrast prompts that is used where `prompts` is not set."""
    path: str | None = None
    """For method=file: a folder of an extracted subspace, a safetensors file of vectors, a PEFT adapter, or a control vector
    (GGUF). For method=random: the folder or file of a subspace, whose ranks, axes, scales and units are copied to the random
    subspace; null: they are copied from the subspace that mean_difference finds."""
    hook: str = "resid_post"
    """Where a layer's stream is read: resid_pre (its input), resid_mid (between attention and MLP), resid_post (its output)."""
    tokens: str | None = None
    """Tokens at which the stream is read. prompt_end: the last `positions` tokens of a prompt; response_mean: the mean over a
    response that the model writes; null: response_mean for assistant_axis and persona_vectors, prompt_end for the other
    methods."""
    response_tokens: int = 16
    """Largest number of tokens of a response that the model writes for response_mean."""
    temperature: float = 1.0
    """Temperature at which responses are sampled; 1 is the model's own distribution, 0 is greedy."""
    held_out: int = 256
    """Number of pairs whose activations are kept, to measure the quality of the subspace on pairs to which it was not fitted.
    This number bounds the memory that an extraction takes, however many prompts there are."""
    roles_file: str | None = None
    """For method=assistant_axis: file of roles, JSON lines of {"name": ..., "prompt": ...}."""
    traits_file: str | None = None
    """For method=persona_vectors: file of traits, JSON lines of {"name": ..., "elicit": ..., "suppress": ...}."""
    questions_file: str | None = None
    """For methods assistant_axis and persona_vectors: file of the questions that roles and traits are asked, JSON lines of
    {"text": ...}."""
    roles: int | None = 24
    """Number of roles that are used, the first ones in `roles_file`; null for all."""
    traits: int | None = None
    """Number of traits that are used, the first ones in `traits_file`; null for all."""
    only: list[str] = field(default_factory=list)
    """Names of the roles or traits that are used, in this order; empty for the first ones of the file (`roles`, `traits`)."""
    questions: int = 16
    """Number of questions that are used, the first ones in `questions_file`."""
    role_components: int = 3
    """For method=assistant_axis with rank=null: largest number of leading principal components of the roles' activations that are
    taken beside the axis."""
    persona_place: str = "system"
    """Where a role or trait stands in the prompt: system (a system message), or user (before the question, for chat templates
    without a system message)."""
    weights: str | None = None
    """For method=sae: safetensors file of a sparse autoencoder, or a SAELens folder (cfg.json and sae_weights.safetensors)."""
    latents: list[int] = field(default_factory=list)
    """For method=sae: indices of the latents that become the axes, in this order."""
    layer: int | None = None
    """For method=sae: the layer whose stream the autoencoder reads; null for the one that its folder names. For method=file: the
    layer of vectors whose names have no number; null for all layers. For methods dpo and bipo: the layer to whose output the
    vector is added; null for the middle one."""
    everywhere: bool = False
    """For methods sae and file: whether vectors that belong to one layer are used at all layers. If false, the layers after that
    one get no basis."""
    flip: bool = False
    """For methods sae and file, also where they are parts of a union or random turns their axes: whether the vectors are negated,
    for vectors that point away from the persona that must not grow."""
    parts: list[str] = field(default_factory=list)
    """For method=union: folders of subspaces, or names of methods, whose axes are joined. The axes are orthonormalised in this
    order."""
    compare_to: list[str] = field(default_factory=list)
    """Folders of other subspaces. `extract --check` compares their axes with the axes of this subspace."""
    answers: str | None = None
    """File of reference answers of both personas for the causal check, JSON lines of {"prompt", "positive", "negative"}; null for
    the file that `known_answers` names for the model."""
    known_answers: dict[str, str] = field(default_factory=dict)
    """Maps a `model.path` to the file of reference answers that is used where `answers` is not set."""
    check: SubspaceCheckConfig = field(default_factory=SubspaceCheckConfig)
    """Thresholds and sizes of `routed-rl extract --check`."""
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    """Settings that make the subspace worse on purpose, for experiments on the cost of an imperfect interpretation."""
    rank: int | None = None
    """Number of directions per layer; null for all directions that are at least as strong as `weakest` says."""
    weakest: float = 0.15
    """With rank=null: smallest singular value that a direction may have, as a share of the largest one in its layer. Weaker
    directions are left out."""
    layout: str = "spanning"
    """Which directions the basis of a writer spans. per_layer: the directions of the first layer whose stream is read after the
    writer has added its output (with hook=resid_post the writer's own layer); spanning: the directions of this layer and of all
    later ones; shared: the directions of all layers, in one basis for all writers."""
    shared_rank: int | None = None
    """For layout=shared: largest rank of the one basis that all writers share; null for all directions that `drop_below`
    leaves."""
    drop_below: float = 0.1
    """For layouts spanning and shared, which join the directions of several layers, each weighted by its strength: joined
    directions whose singular value is below this share of the largest one are dropped."""
    positions: int = 8
    """With tokens=prompt_end: largest number of tokens that are read at the end of a prompt. Only the tokens of the ending that
    both prompts of a pair share are read; the very last token is read in any case."""
    last_weight: float = 3.0
    """Weight of the last token of a prompt in the fit; every other token that is read has weight 1."""
    batch_size: int = 32
    """Number of prompts per forward pass of the extraction."""

    def __post_init__(self) -> None:
        check_known("subspace.method", [self.method], METHODS)
        self.check_axes()
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
        if self.method in UNNAMED and self.hook != "resid_post":
            raise ConfigError(f"subspace.method={self.method} pushes the outputs of layers, got subspace.hook={self.hook}; set "
                              "subspace.hook=resid_post")
        if self.method == "file" and not self.path:
            raise ConfigError("subspace.method=file needs subspace.path=FOLDER, as written by `routed-rl extract`, or a file of "
                              "vectors, an adapter, or a control vector")
        if self.method == "sae" and not (self.weights and self.latents):
            raise ConfigError("subspace.method=sae needs subspace.weights=FILE and subspace.latents=[1,2]")
        if self.method == "union" and len(self.parts) < 2:
            raise ConfigError(f"subspace.method=union needs two parts or more, got subspace.parts={self.parts}; write "
                              "subspace.parts=[FOLDER,assistant_axis]")

    def prompts_for(self, model_path: str) -> str | None:
        """The file of contrast prompts for a model: the one that is set, or else the one that `known_prompts` names for the
        model. None if there is none."""
        return self.prompts or self.known_prompts.get(model_path)

    def answers_for(self, model_path: str) -> str | None:
        """The file of reference answers for a model: the one that is set, or else the one that `known_answers` names for the
        model. None if there is none."""
        return self.answers or self.known_answers.get(model_path)
