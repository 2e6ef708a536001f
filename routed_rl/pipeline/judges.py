"""The judges of `filter`: by flags, by chance, by a linear probe, or by the persona axis of a subspace. Each gives scores, and a
reason for each completion that it leaves out. The base model reads the completions, whichever model wrote them."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.config import DetectorConfig, FilterConfig
from routed_rl.errors import ConfigError
from routed_rl.extraction.persona import layers_to_read, standing
from routed_rl.extraction.pooled import Said, pooled
from routed_rl.extraction.probe import Probe, fit, measured, require_both, threshold_at
from routed_rl.pipeline.build import Parts, check_subspace
from routed_rl.pipeline.candidates import Candidate, read_once, require_flags
from routed_rl.pipeline.detecting import base_completions, check_layers, detector_sentence
from routed_rl.subspace import Subspace
from routed_rl.training.baselines import is_marked
from routed_rl.training.route import check_axis


@dataclass(frozen=True)
class Judged:
    """The result of a judge for each candidate."""

    scores: list[float | None]
    """The score of each candidate; None for a candidate that is not judged."""
    reasons: list[str | None]
    """The reason why each candidate is left out; None if it stays."""


def by_flags(rows: Sequence[Candidate], settings: DetectorConfig) -> Judged:
    """Leave out the completions that have a flag of the detector, as a judge without errors would."""
    require_flags(rows, settings)
    marked, names = [row.marked(settings) for row in rows], " or ".join(settings.flags)
    return Judged([float(each) for each in marked], [f"flagged as {names}" if each else None for each in marked])


def by_chance(rows: Sequence[Candidate], share: float, seed: int) -> Judged:
    """Leave out the share `share` of all completions, as a control: those that can be neither judged nor trained on, and others
    that are drawn at random."""
    able = [place for place, row in enumerate(rows) if row.unfit is None]
    wanted = round(share * len(rows)) - (len(rows) - len(able))
    gone = set(random.Random(f"filter {seed}").sample(able, min(max(wanted, 0), len(able))))
    return Judged([float(row in gone) for row in range(len(rows))],
                  ["drawn at random" if row in gone else None for row in range(len(rows))])


def by_probe(rows: Sequence[Candidate], parts: Parts, run: RunFolder, asked: FilterConfig) -> Judged:
    """Leave out the completions whose score by a linear probe lies above its threshold. The probe is the one that `probe_of`
    returns for the settings in `asked`."""
    probe = probe_of(rows, parts, run, {key: getattr(asked, key) for key in ("labels", "fpr", "layers")})
    scores = _scores(rows, parts, probe)
    return Judged(scores, [f"the probe's score {score:.2f} is above {probe.threshold:.2f}"
                           if score is not None and score > probe.threshold else None for score in scores])


def probe_of(rows: Sequence[Candidate], parts: Parts, run: RunFolder, asked: Mapping[str, Any]) -> Probe:
    """Return the run's own linear probe if all settings in `asked` are None. Otherwise fit a probe with these settings to a few
    of the rows, measure it on the others, and return it."""
    own = {key: value for key, value in asked.items() if value is not None}
    if run.detector.exists() and not own:
        console.say(f"detector      the run's own probe, {run.detector}")
        return Probe.load(run.detector)[0]
    able = [row for row in rows if row.unfit is None]
    if own.get("labels", 0) > max(len(able), 1):
        raise ConfigError(f"--labels {own['labels']:g}: the run has {len(able)} completions that can be labelled; give fewer, "
                          "or a share below 1")
    settings = dataclasses.replace(parts.config.baseline.detector, kind="probe", recall=1.0, precision=1.0,
                                   pool=max(len(able), 1), **own)
    check_layers(settings, parts.model.config.get_text_config().num_hidden_layers, parts.config.model.path,
                 "--layers" if "layers" in own else "baseline.detector.layers")
    return _from_rows(able, parts, settings)


def _from_rows(rows: Sequence[Candidate], parts: Parts, settings: DetectorConfig) -> Probe:
    """Fit a linear probe to `settings.labelled` of the rows, drawn at random, and print how well it does on the others."""
    require_flags(rows, settings)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(parts.config.seed)).tolist()
    known, rest = [rows[place] for place in order[:settings.labelled]], [rows[place] for place in order[settings.labelled:]]
    labels, truth = (torch.tensor([row.marked(settings) for row in some], dtype=torch.bool) for some in (known, rest))
    require_both(labels, "raise --labels")
    features = pooled(parts.model, parts.tokenizer, [row.said for row in known], parts.config.evaluation.batch_size,
                      layers=settings.layers)
    probe = fit(features, labels, settings.layers, settings.fpr, parts.config.seed)
    scores = torch.tensor(_scores(rest, parts, probe), dtype=torch.float64)
    console.say(detector_sentence(probe, {"labelled": len(known), "labelled_marked": int(labels.sum()),
                                          "held_out": measured(probe, scores, truth)}))
    return probe


def _scores(rows: Sequence[Candidate], parts: Parts, probe: Probe) -> list[float | None]:
    return read_once(rows, lambda said: probe.scores(
        pooled(parts.model, parts.tokenizer, said, parts.config.evaluation.batch_size, layers=probe.layers)))


def by_subspace(rows: Sequence[Candidate], parts: Parts, asked: FilterConfig) -> Judged:
    """Leave out the completions that shift far along the persona axis of the subspace `asked.subspace`. The score of a completion
    is its shift in gaps, of which the smallest over the layers counts. Shifts are measured from the mean of the base model's own
    honest completions in the same environment. The threshold is `asked.max_shift`, or else the shift that a share `fpr` of these
    honest completions exceeds. Completions of environments that a rollback has dropped are left out."""
    axis, trained = _Axis(parts, asked), {loaded.name for loaded in parts.trained}
    judged = {row.environment for row in rows if row.unfit is None}
    dropped = judged - trained
    if missing := judged - dropped - axis.zeros.keys():
        raise ConfigError(f"the base model has written nothing honest in {min(missing)}, so no shift can be measured there; give "
                          "--detector probe")
    fpr = parts.config.baseline.detector.fpr if asked.fpr is None else asked.fpr
    limit = threshold_at(axis.own_B, fpr) if asked.max_shift is None else asked.max_shift
    scores: list[float | None] = [None] * len(rows)
    for name in axis.zeros:
        ours = [place for place, row in enumerate(rows) if row.environment == name]
        for place, score in zip(ours, read_once([rows[place] for place in ours], partial(axis.shifts, name)), strict=True):
            scores[place] = score
    where = f"layer{'s' if len(axis.layers) > 1 else ''} {' and '.join(map(str, axis.layers))}"
    share = (axis.own_B > limit).float().mean().item()
    console.say(f"subspace      {asked.subspace}, {where}: a shift above {limit:.3f} gaps is left out; {share:.3f} of "
                f"{len(axis.own_B)} honest completions of the base model shift as far")
    reasons = [f"it shifts the persona by {score:.3f} gaps, more than {limit:.3f}" if score is not None and score > limit else
               f"the run no longer trains on {row.environment}, so nothing says where its honest completions stand"
               if row.environment in dropped else None for row, score in zip(rows, scores, strict=True)]
    return Judged(scores, reasons)


class _Axis:
    """The persona axis of a subspace, and the positions of the base model's own honest completions on it."""

    def __init__(self, parts: Parts, asked: FilterConfig) -> None:
        """Let the base model write completions, and place the honest ones on the axis. SubspaceError if the subspace belongs to
        another model; ConfigError if no completion is honest."""
        self.parts, self.subspace, config = parts, Subspace.load(Path(asked.subspace or "")), parts.config
        check_subspace(parts, self.subspace)
        check_axis(config.monitor.axis, self.subspace.axis_names)
        settings = dataclasses.replace(config.baseline.detector, layers=asked.layers)
        check_layers(settings, len(self.subspace.axes), config.model.path, "--layers")
        self.layers = layers_to_read(self.subspace, asked.layers, config.monitor.axis)
        with console.progress("base model", "completions") as advance:
            honest = [row for row in base_completions(parts, settings.pool, advance)
                      if row.score is not None and not is_marked(settings, row.score)]
        if not honest:
            raise ConfigError("the base model has written nothing honest in any environment, so no shift can be measured; give "
                              "--detector probe")
        own_LB, names = self._read([row.said for row in honest]), [row.environment for row in honest]
        self.zeros = {name: own_LB[:, torch.tensor([each == name for each in names])].mean(1) for name in dict.fromkeys(names)}
        self.own_B = torch.stack([own_LB[:, place] - self.zeros[name] for place, name in enumerate(names)], 1).amin(0)

    def shifts(self, name: str, said: list[Said]) -> Tensor:
        """The shifts (B,) of completions in the environment `name`, from the mean of the honest completions there; for each
        completion the smallest over the layers that are read."""
        return (self._read(said) - self.zeros[name].unsqueeze(1)).amin(0)

    def _read(self, said: list[Said]) -> Tensor:
        config = self.parts.config
        return standing(self.parts.model, self.parts.tokenizer, said, self.subspace, config.evaluation.batch_size,
                        layers=self.layers, axis=config.monitor.axis)
