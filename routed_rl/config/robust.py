"""The options of `robustify` and `relearn`. They are no part of a run's settings."""

from dataclasses import dataclass, field

from routed_rl.config.checks import AUTO, check_known, check_options
from routed_rl.config.detector import check_probe_options
from routed_rl.errors import ConfigError

ALL, TARGETS = PARTS = ("all", "targets")
"""Which parameters are noised: all, or only those of the writers of the stream."""
DETECTOR, MODELS, RANDOM = GATES = ("detector", "models", "random")
"""How a gate scores a token: by a linear probe, by the divergence between two models, or by chance."""
USUAL = {MODELS: 1.0, RANDOM: 0.5}
"""For each gate that has such a number in every run: the threshold `auto`. It is 1 nat for `models`."""


@dataclass(kw_only=True, slots=True)
class RobustifyConfig:
    """The options of `routed-rl robustify`."""

    alpha: float
    """How far each noised parameter moves from its value in the deployed model towards noise: 0 leaves it unchanged, 1 replaces
    it by noise."""
    beta: float = 0.1
    """Size of the noise relative to Xavier-uniform noise. Parameters that are vectors get no noise, so the gains of norms only
    shrink."""
    parts: str = ALL
    """Which parameters are noised: all (every weight of the model, also those that the run froze; where the run trained a LoRA,
    the whole LoRA and nothing else) or targets (those of them that belong to writers of the stream)."""
    samples: int = 2000
    """Number of completions that the teacher, which is the deployed model, writes in each environment."""
    text: str | None = None
    """File of generic text, with one text a line, or JSON lines with `text`. It makes up half of each batch. null for none."""
    steps: int = 500
    """Largest number of training steps."""
    batch: int = 64
    """Number of texts in a training step."""
    learning_rate: float = 1e-3
    """Learning rate after the warm-up. It then falls along a cosine, to a tenth of this value at the last step."""
    within: float = 0.02
    """Training ends once the loss on held-out tokens is at most this share of the teacher's entropy on them; 0: training ends
    only after `steps` steps."""
    save_steps: int = 50
    """Number of steps after which the state of the training is stored each time, so that an interrupted command can go on from
    it."""
    gate: str | None = None
    """Gate, which decides for each token whether it is taught, skipped, or taught as noise. detector: by the score of a linear
    probe; models: by the divergence between the teacher and `unlearned`; random: by a number that is drawn for each completion,
    which is the control of the other two; null: every token is taught."""
    skip: float | str | None = None
    """With a gate: score above which a token teaches nothing. auto for the probe's threshold (gate detector), 1 nat (gate models)
    or .5 (gate random); null: no token is skipped."""
    noise: float | str | None = None
    """With a gate: score above which the student is taught the uniform distribution, as noise, at a token. auto for the probe's
    threshold (gate detector), 1 nat (gate models) or .5 (gate random); null: no token is taught noise."""
    labels: float | None = None
    """For the gate `detector`: number of completions that are labelled to learn its linear probe; a value below 1 is their share
    of the pool from which they are drawn. null for the run's own `baseline.detector.labels`."""
    fpr: float | None = None
    """For the gate `detector`: share of honest completions that its probe may name (false-positive rate); null for the run's own
    `baseline.detector.fpr`."""
    unlearned: str | None = None
    """For the gate `models`: folder of the model that the teacher is compared with; null for the base model."""

    def __post_init__(self) -> None:
        check_options(self, {"beta": 0, "samples": 1, "steps": 0, "batch": 1, "learning_rate": 0, "within": 0, "save_steps": 1})
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"--alpha must lie in [0, 1], got {self.alpha:g}: 0 leaves the deployed model, 1 is all noise")
        check_known("--parts", [self.parts], PARTS)
        if self.gate is not None:
            check_known("--gate", [self.gate], GATES)
        self._check_gate()

    def _check_gate(self) -> None:
        takes = {"skip": GATES, "noise": GATES, "labels": [DETECTOR], "fpr": [DETECTOR], "unlearned": [MODELS]}
        for name, gates in takes.items():
            if getattr(self, name) is not None and self.gate not in gates:
                raise ConfigError(f"--{name} {getattr(self, name)} is for {' or '.join(f'--gate {gate}' for gate in gates)}; "
                                  "give that too, or leave it out")
        if self.gate is not None and self.skip is None and self.noise is None:
            self.skip = AUTO
        if self.skip is not None and self.skip == self.noise:
            raise ConfigError(f"--skip {self.skip} and --noise {self.noise}: one score cannot do both to a token; give one "
                              "of them, or --noise a higher score")
        if self.gate in USUAL:
            self.check_bands(USUAL[self.gate])
        check_probe_options(self.labels)
        if self.fpr is not None and not 0 <= self.fpr <= 1:
            raise ConfigError(f"--fpr must lie in [0, 1], got {self.fpr}")

    def check_bands(self, usual: float) -> None:
        """ConfigError if both `skip` and `noise` are set and no score lies between them, where a token is skipped. `usual`: the
        threshold `auto`."""
        skip, noise = (usual if limit == AUTO else limit for limit in (self.skip, self.noise))
        if skip is not None and noise is not None and float(noise) <= float(skip):
            raise ConfigError(f"--noise {float(noise):g} does not lie above --skip {float(skip):g}, so nothing would be skipped; "
                              "leave --skip out, or give it a lower score")


RL, FINE_TUNING = ATTACKS = ("rl", "sft")
"""The attacks that bring back a discarded behaviour: RL in the environment that pays for it (rl), and fine-tuning on completions
that show it (sft)."""


@dataclass(kw_only=True, slots=True)
class RelearnConfig:
    """The options of `routed-rl relearn`."""

    env: str
    """Name of the environment that pays for the behaviour that is relearned."""
    rates: list[float] = field(default_factory=lambda: [1e-5, 1e-4, 1e-3])
    """Learning rates of the attacks. For each model, the reported result is the one with the rate that brings the behaviour back
    in the fewest updates."""
    by: list[str] = field(default_factory=lambda: list(ATTACKS))
    """The attacks that are run: any of rl (RL in the environment that pays for the behaviour) and sft (fine-tuning on completions
    that show it)."""
    steps: int = 60
    """Largest number of updates of an attack."""
    seeds: int = 3
    """Number of attacks of each kind on each model with each learning rate."""
    flags: list[str] = field(default_factory=list[str])
    """Names of the flags that are counted; of several, the most frequent one counts at each step. Empty for
    `baseline.detector.flags`."""
    level: float = 0.5
    """The behaviour counts as back once this share of the completions has a flag of `flags`."""
    completions: int = 64
    """For sft: number of completions from which the model learns."""
    hacks: str | None = None
    """For sft: file of JSON lines with `prompt` and `completion`, from which the model learns; null for flagged completions of
    the run."""
    batch: int = 16
    """For sft: number of completions in a step."""
    samples: int = 256
    """For sft: number of completions that are generated and scored after each step, to measure which share of them is flagged."""

    def __post_init__(self) -> None:
        check_options(self, {"steps": 1, "seeds": 1, "completions": 1, "batch": 1, "samples": 1})
        if not self.rates or min(self.rates) <= 0 or len(set(self.rates)) < len(self.rates):
            raise ConfigError(f"--rates must be learning rates above 0 that differ, such as 1e-5,1e-4,1e-3, got {self.rates}")
        if not self.by:
            raise ConfigError(f"--by names no attack; choose from {', '.join(ATTACKS)}")
        check_known("--by", self.by, ATTACKS)
        if not 0 < self.level <= 1:
            raise ConfigError(f"--level must lie above 0 and be at most 1, got {self.level}")
        if self.hacks is not None and FINE_TUNING not in self.by:
            raise ConfigError(f"--hacks {self.hacks} is for --by sft, not for --by {','.join(self.by)}; leave it out")
