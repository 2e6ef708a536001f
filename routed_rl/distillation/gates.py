"""Gates, which decide for each token whether the student learns it: a gate keeps the token, skips it, or makes noise its target.

Gate `detector`: a linear probe on the base model's activations, learned from few labels, scores the completion up to each of its
tokens. Gate `models`: the score of a token is KL(unlearned ‖ teacher), which is high where the unlearned model would have
continued in another way than the teacher. If the user names no unlearned model, it is the base model. Gate `random`, the control
of the other two, draws a score for each completion. All decisions are made before the student learns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.config import AUTO
from routed_rl.config.robust import DETECTOR, MODELS, RANDOM, USUAL, RobustifyConfig
from routed_rl.distillation.divergence import KEEP, NOISE, SKIP, Row, chunks, forward_kl, read
from routed_rl.extraction.pooled import running
from routed_rl.extraction.probe import Probe
from routed_rl.model.prompts import eos_ids
from routed_rl.pipeline.build import Parts
from routed_rl.subspace.quality import auroc

NAMES = {KEEP: "keep", SKIP: "skip", NOISE: "noise"}


@dataclass(frozen=True)
class Gated:
    """The decisions of a gate."""

    actions: list[list[int]]
    """KEEP, SKIP or NOISE for each counted token of each row."""
    record: dict[str, Any]
    """The thresholds, the shares of tokens that are kept, skipped and taught as noise in each environment, and how well gated
    completions agree with the environments' flags."""


def keep_all(rows: Sequence[Row]) -> Gated:
    """Keep every token, as if there were no gate."""
    return Gated([[KEEP] * row.counted for row in rows], {})


def by_detector(rows: Sequence[Row], parts: Parts, probe: Probe, asked: RobustifyConfig) -> Gated:
    """Decide by the scores that the linear probe `probe` gives to the tokens of completions. `asked` has the thresholds. Generic
    text is always kept. The token that ends a completion gets the score of the token before it."""
    ends, sequences, counts = set(eos_ids(parts.model, parts.tokenizer)), list[list[int]](), list[int]()
    places = [place for place, row in enumerate(rows) if row.environment is not None]
    for row in (rows[place] for place in places):
        own = row.counted - (row.ids[-1] in ends)
        sequences.append(row.ids[:row.start + own])
        counts.append(max(own, 1))
    scores = [torch.full((row.counted,), -torch.inf, dtype=torch.float64) for row in rows]
    for index, means_LCD in running(parts.model, sequences, counts, parts.config.evaluation.batch_size, probe.layers):
        found, place = probe.scores(means_LCD), places[index]
        scores[place] = torch.cat([found, found[-1:]])[:rows[place].counted]
    return _decided(rows, scores, asked, probe.threshold)


@torch.no_grad()
def by_models(rows: Sequence[Row], teacher: PreTrainedModel, unlearned: PreTrainedModel, asked: RobustifyConfig) -> Gated:
    """The gate `models`: decide for every token of `rows`, those of generic text included, whether the student learns it, skips
    it or gets noise as its target. The token's score, KL(unlearned ‖ teacher) in nats, is compared with thresholds in `asked`.
    """
    scores = [torch.zeros(row.counted, dtype=torch.float64) for row in rows]
    for places in chunks(rows, teacher.config.get_text_config().vocab_size):
        chunk = [rows[place] for place in places]
        found = forward_kl(read(unlearned, chunk)[0], read(teacher, chunk)[0]).double().cpu()
        for place, each in zip(places, found.split([row.counted for row in chunk]), strict=True):
            scores[place] = each
    return _decided(rows, scores, asked, USUAL[MODELS])


def by_random(rows: Sequence[Row], asked: RobustifyConfig, seed: int) -> Gated:
    """Decide by a number that is drawn for each completion, uniformly from 0 to 1, so with `--skip .3` seven completions in ten
    are skipped whole. `asked` has the thresholds. Generic text is always kept, as by `by_detector`."""
    drawn = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    scores = [torch.full((row.counted,), score if row.environment is not None else -torch.inf, dtype=torch.float64)
              for row, score in zip(rows, drawn, strict=True)]
    return _decided(rows, scores, asked, USUAL[RANDOM])


def _decided(rows: Sequence[Row], scores: list[Tensor], asked: RobustifyConfig, usual: float) -> Gated:
    limits = {action: usual if limit == AUTO else float(limit) for action, limit in ((SKIP, asked.skip), (NOISE, asked.noise))
              if limit is not None}
    actions = []
    for each in scores:
        action = torch.full(each.shape, KEEP)
        for kind in sorted(limits, key=lambda kind: limits[kind]):
            action[each > limits[kind]] = kind
        actions.append(action.tolist())
    record: dict[str, Any] = {"gate": asked.gate, "thresholds": {NAMES[kind]: limit for kind, limit in limits.items()},
                              "tokens": {name: _shares([action for row, action in zip(rows, actions, strict=True)
                                                        if (row.environment or "text") == name])
                                         for name in dict.fromkeys(row.environment or "text" for row in rows)}}
    return Gated(actions, record | {"against_flags": _agreement(rows, scores, actions)})


def _shares(actions: list[list[int]]) -> dict[str, float]:
    every = [action for each in actions for action in each]
    return {name: every.count(kind) / max(len(every), 1) for kind, name in NAMES.items()}


def _agreement(rows: Sequence[Row], scores: list[Tensor], actions: list[list[int]]) -> dict[str, float | int | None]:
    """Compare the gate with the flags of the teacher's completions. Returns the numbers of completions and of flagged ones, the
    AUROC of the scores, and the gate's false-positive rate and recall; None for a figure that is not known. A completion counts
    as gated if any of its tokens is skipped or gets noise, and its score is the largest score of its tokens."""
    ours = [(row.marked, float(score.max()), any(action)) for row, score, action in zip(rows, scores, actions, strict=True)
            if row.environment is not None and row.counted]
    bad, good = ([each for each in ours if each[0] == kind] for kind in (True, False))
    known = bool(bad and good)
    return {"completions": len(ours), "marked": len(bad),
            "auroc": auroc(*(torch.tensor([score for _, score, _ in each]) for each in (bad, good))) if known else None,
            "false_positive_rate": sum(hit for *_, hit in good) / len(good) if good else None,
            "recall": sum(hit for *_, hit in bad) / len(bad) if bad else None}


def samples_tokens(asked: RobustifyConfig) -> bool:
    """Whether the student learns only the probability of each written token, instead of the teacher's whole distribution at this
    token; see `token_losses`."""
    return asked.gate in (DETECTOR, RANDOM)
