"""The router: all of a run's routing behind four methods, called in the order of a training step."""

import zlib
from itertools import chain

import torch
from torch import Tensor

from routed_rl.config import RoutingConfig
from routed_rl.errors import ModelError
from routed_rl.ranks import RANKS
from routed_rl.routing.adapted import holding
from routed_rl.routing.axes import Axes
from routed_rl.routing.ledger import LedgerBook
from routed_rl.routing.modes import MODES
from routed_rl.routing.optimizer import QuarantineOptimizer
from routed_rl.routing.pace import Pace
from routed_rl.routing.quarantine import Quarantine
from routed_rl.routing.rows import RowBook, StepRows

CONTROL_KINDS = ("isotropic", "matched")
"""The kinds of random bases, which take turns: Haar-distributed, or with the stream's covariance."""
AWAY = 0.05
"""A part may stand this far away from the positive persona, in gaps, and still not count as away, as long as no other part was
fast."""
OF_NO_WRITER = 0.1
"""The value of the writers' pace if only LoRAs of readers are trained, because the learning rate of a LoRA is usually ten times a
weight's."""


class Router:
    """Drives a `Quarantine` through a run: `begin_step`, `set_batch` before each loss, `after_step`; and its state for
    checkpoints."""

    def __init__(self, quarantine: Quarantine, config: RoutingConfig, axes: Axes, stream_LSD: Tensor, seed: int,
                 rows: RowBook | None = None) -> None:
        """`rows` measures the completions of a batch one by one; None: they are not measured."""
        self.quarantine, self.config, self.seed, self.stream_LSD = quarantine, config, seed, stream_LSD
        self.mode = MODES[config.mode]
        self.contained = self.mode.contained if config.cotangent is None else config.cotangent == "contained"
        self.optimizer = QuarantineOptimizer(config.quarantine, quarantine.targets)
        self.book, self.rows = LedgerBook(quarantine.environments, axes), rows
        follows = config.mode == "route" and config.quarantine.pace == "evidence"
        assert rows is not None or not follows, "pace=evidence needs rows, which measure each completion's pull"
        self.pace = Pace(config.quarantine, quarantine.environments, rows.axis if rows else axes.names[0], follows=follows)
        self.context = quarantine.context
        self.context.change(contained=self.contained, whole=self.mode.whole)
        self.pushes = dict.fromkeys(quarantine.environments, 0.0)
        """Sum of each environment's push so far."""
        self._checked = False

    def begin_step(self, step: int) -> None:
        """Prepare the tapes for step `step` (counted from 0). Every `random_control.every` steps random bases are drawn."""
        control = self.config.random_control
        due = control.every > 0 and step % control.every == 0
        self.context.change(control_draws=control.draws if due else 0)
        if self.rows is not None:
            self.rows.begin()
        if not due:
            return
        for target in self.quarantine.targets:
            stream = self.stream_LSD[target.layer] if self._kind(step) == "matched" else None
            if target.rank and target.tape.control_bases is None:
                seed = zlib.crc32(f"{self.seed}/{step}/{target.name}".encode())  # the same on every machine, unlike `hash`
                target.tape.draw_control(control.draws, seed, stream)

    def set_batch(self, environment_ids_B: Tensor, mask_BT: Tensor, completions_B: Tensor | None = None,
                  practising_B: Tensor | None = None) -> None:
        """Describe the rows of the next loss; see `RoutingContext.set_batch`."""
        self.context.set_batch(environment_ids_B, mask_BT, self.config.quarantine.sample_tokens, completions_B, practising_B)

    @torch.no_grad()
    def after_step(self, step: int, *, clip: float, rate: float, decay: float) -> tuple[dict[str, float], StepRows | None]:
        """Take the quarantine's step and re-impose the weights, after the model's own optimizer has stepped. Returns the ledger's
        row, and, if completions are measured one by one, the effect of each completion of this process.

        `clip` is the clip factor of the weights' gradients; `rate` and `decay` are those of the weights in this step.
        """
        bytes_before = RANKS.bytes
        with holding(target.weight for target in self.quarantine.targets):
            row, rows = self._after_step(step, clip, rate, decay)
        if RANKS.bytes > bytes_before:
            row["routing/bytes"] = RANKS.bytes - bytes_before
        return row, rows

    def _after_step(self, step: int, clip: float, rate: float, decay: float) -> tuple[dict[str, float], StepRows | None]:
        targets = self.quarantine.targets
        self._reduce()
        self._check_taps()
        rate_E = self.pace.rates(rate * self._entries())
        steps = self.optimizer.step([target.tape.ledger.mul_(clip) for target in targets], rate_E)
        for target, (delta, fresh_E) in zip(targets, steps, strict=True):
            self.book.before(target, target.tape.ledger, contained=self.contained)
            old = target.coefficients.clone()
            if self.rows is not None:
                # A row's ledger is this process' own, and its loss has a weight of 1 / RANKS.count among all processes.
                self.rows.after(target, fresh_E * clip / RANKS.count)
            self.mode.after_step(target, delta, target.decay(rate * decay))
            self.book.after(target, delta, old)
            target.tape.clear()
        self.context.change(practising_B=None)  # an evaluation may follow, which has other rows
        row, rows = self.book.close(self._kind(step)), None
        if self.rows is not None:
            rows = self.rows.close(row["quarantine/norm"] - row["quarantine/growth"], first=self.optimizer.steps == 1)
            row |= self._own(rows, row)
        row |= self.pace.see(row)
        for name in self.pushes:
            self.pushes[name] += row[f"ledger/{name}/push"]
        return row, rows

    def _entries(self) -> float:
        """How far an entry of the writers' weights moves, on average, in a step in which every trained number moves by 1."""
        found = [pace for target in self.quarantine.targets if (pace := target.weight.pace()) is not None]
        return sum(found) / len(found) if found else OF_NO_WRITER

    def _own(self, rows: StepRows | None, row: dict[str, float]) -> dict[str, float]:
        """For each environment, the sums over its completions in all processes, their pull `own_shift_z` towards the positive
        persona, and the `evidence` that they teach it. The pull is in standard errors: the sum of the completions' shifts divided
        by the root of the sum of squared shifts. It is of size 1 if they do not pull, whatever the length of the step. A secure
        skill may also have a part along the axis, but the quarantine does not hold it; evidence is therefore the smaller of the
        pull and of the push in its own standard errors. While an environment's own part stands away from the positive persona, by
        the ledger's `row`, its pull only undoes that and is no evidence."""
        mine = {f"completions/{name}/{key}": value for place, name in enumerate(self.quarantine.environments)
                for key, value in rows.sums(place).items()} if rows is not None else {}
        everyones = RANKS.gather(mine)
        found: dict[str, float] = {key: sum(each.get(key, 0.0) for each in everyones)
                                   for key in dict.fromkeys(chain(*everyones))}
        others = self.pace.after_another_E.tolist()
        for name, another in zip(self.quarantine.environments, others, strict=True):
            own = {key: found[f"completions/{name}/own_{key}"] / square**0.5 if square else 0.0 for key in ("shift", "push")
                   if (square := found.pop(f"completions/{name}/own_{key}_square", None)) is not None}
            if "shift" in own:
                away = row[f"ledger/{name}/shift/{self.pace.axis}"] < (0.0 if another else -AWAY)
                taught = min(own["shift"], own.get("push", own["shift"]))
                found[f"completions/{name}/own_shift_z"] = own["shift"]
                found[f"completions/{name}/evidence"] = min(taught, 0.0) if away else taught
        return found

    def measure_start(self) -> None:
        """From now on, measure the movement of the weights from their present values, in each process for the entries that it
        holds."""
        for target in self.quarantine.targets:
            target.weight.measure_start()

    def _reduce(self) -> None:
        """Reduce ledgers, means of the inputs and random control over all processes, once a step, so that they are those of a
        single process with all rows. A process' loss is scaled so that gradients are averaged over the processes, so the global
        ledger is the mean of the processes' ledgers."""
        tapes = [target.tape for target in self.quarantine.targets]
        means = [tape.mean_sums() for tape in tapes]
        RANKS.sum_([*means, *(part for tape in tapes for part in tape.to_sum())])
        for tape, sums in zip(tapes, means, strict=True):
            if RANKS.count > 1:
                tape.ledger.div_(RANKS.count)
            tape.update_mean(sums)

    def _kind(self, step: int) -> str:
        return CONTROL_KINDS[step // max(self.config.random_control.every, 1) % len(CONTROL_KINDS)]

    def _check_taps(self) -> None:
        if self._checked:
            return
        silent = [target.name for target in self.quarantine.targets if not target.tape.fired]
        if silent:
            raise ModelError(f"no gradient reached {', '.join(silent[:3])}{' ...' if len(silent) > 3 else ''} in the first "
                             "step: the model's forward does not go through it, or the loss ignores it; this model cannot "
                             "be routed")
        self._checked = True

    def state_dict(self) -> dict[str, Tensor]:
        """The state of quarantine, optimizer, pushes and pace, as tensors."""
        pushes = torch.tensor([self.pushes[name] for name in self.quarantine.environments], dtype=torch.float64)
        return self.quarantine.state_dict() | self.optimizer.state_dict() | {"pushes": pushes} | self.pace.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.quarantine.load_state_dict(state)
        self.optimizer.load_state_dict(state)
        self.pace.load_state_dict(state)
        self.pushes = dict(zip(self.quarantine.environments, state["pushes"].tolist(), strict=True))
