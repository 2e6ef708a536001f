"""The router: does all of a run's routing, by methods that a trainer calls at fixed points of a training step."""

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
from routed_rl.routing.rates import Rates
from routed_rl.routing.rows import RowBook, StepRows

CONTROL_KINDS = ("isotropic", "matched")
"""The kinds of random bases with which the subspace is compared in turn: Haar-distributed, or with the stream's covariance."""
AWAY = 0.05
"""An environment's pull towards the positive persona is no evidence while its own part has shifted the stream away from this
persona by more than `AWAY`, in gaps. Once the part of another environment has been fast, any shift away is enough."""
OF_NO_WRITER = 0.1
"""The result of `Router._entries` if no writer is trained, only LoRAs of readers. It makes up for the learning rate of a LoRA,
which is usually ten times that of a weight."""


class Router:
    """Drives a `Quarantine` through a run, and gives and takes its state for checkpoints. In every step a trainer calls
    `begin_step` first, `set_batch` before each loss, and `after_step` when the optimizer of the weights has stepped."""

    def __init__(self, quarantine: Quarantine, config: RoutingConfig, axes: Axes, stream_LSD: Tensor, seed: int,
                 rows: RowBook | None = None) -> None:
        """`axes`: the named axes along which shifts are reported. `stream_LSD`: a sample of S activations of the stream at each
        layer, whose covariance the matched random control has. `seed`: the seed of the random control. `rows`: measures the
        effect of each completion of a step; None: only whole environments are measured."""
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
        """Prepare the tapes for step `step` (counted from 0). In every `random_control.every`-th step random bases are drawn."""
        control = self.config.random_control
        due = control.every > 0 and step % control.every == 0
        self.context.change(control_draws=control.draws if due else 0)
        for target in self.quarantine.targets:
            if target.tape.fired:  # by a step that an exception ended
                target.tape.clear()
        if self.rows is not None:
            self.rows.begin()
        if not due:
            return
        for target in self.quarantine.targets:
            stream = self.stream_LSD[target.place] if self._kind(step) == "matched" else None
            if target.rank and target.tape.control_bases is None:
                seed = zlib.crc32(f"{self.seed}/{step}/{target.name}".encode())  # the same on every machine, unlike `hash`
                target.tape.draw_control(control.draws, seed, stream)

    def set_batch(self, environment_ids_B: Tensor, mask_BT: Tensor, completions_B: Tensor | None = None,
                  practising_B: Tensor | None = None) -> None:
        """Describe the rows of the next loss; see `RoutingContext.set_batch`."""
        self.context.set_batch(environment_ids_B, mask_BT, self.config.quarantine.sample_tokens, completions_B, practising_B)

    @torch.no_grad()
    def after_step(self, step: int, *, clip: float, rates: Rates) -> tuple[dict[str, float], StepRows | None]:
        """Make the quarantine's step and remove from the weights what they have learned inside the subspace, as the routing mode
        says. Must be called after the model's own optimizer has stepped. Returns the ledger's row of the step, and the effects of
        this process' completions (None if completions are not measured one by one).

        `clip`: the factor by which the gradients of the weights were clipped. `rates`: the learning rate and the weight decay of
        each trained parameter in this step.
        """
        bytes_before = RANKS.bytes
        with holding(target.weight for target in self.quarantine.targets):
            row, rows = self._after_step(step, clip, rates)
        if RANKS.bytes > bytes_before:
            row["routing/bytes"] = RANKS.bytes - bytes_before
        return row, rows

    def _after_step(self, step: int, clip: float, rates: Rates) -> tuple[dict[str, float], StepRows | None]:
        targets = self.quarantine.targets
        self._reduce()
        self._check_taps()
        rate_E = self.pace.rates(rates.most * self._entries(rates))
        steps = self.optimizer.step([target.tape.ledger.mul_(clip) for target in targets], rate_E)
        for target, (delta, fresh_E) in zip(targets, steps, strict=True):
            self.book.before(target, target.tape.ledger, contained=self.contained)
            old = target.coefficients.clone()
            if self.rows is not None:
                # A row's ledger is this process' own, and its loss has a weight of 1 / RANKS.count among all processes.
                self.rows.after(target, fresh_E * clip / RANKS.count)
            self.mode.after_step(target, delta, target.decay(rates))
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

    def _entries(self, rates: Rates) -> float:
        """How far an entry of a writer's weight moves in a step in which every trained number moves by its learning rate, on
        average over writers, divided by the largest rate; `OF_NO_WRITER` if no writer is trained."""
        found = [pace for target in self.quarantine.targets if (pace := target.weight.pace(rates)) is not None]
        return sum(found) / len(found) if found else OF_NO_WRITER

    def _own(self, rows: StepRows | None, row: dict[str, float]) -> dict[str, float]:
        """Compute the metrics `completions/<env>/...`: the sums of `StepRows.sums` over all processes, the pull `own_shift_z`,
        and `evidence`. `rows`: the effects of this process' completions. `row`: the ledger's row of the step.

        The pull of an environment is the sum of its completions' shifts in standard errors, that is, divided by the root of the
        sum of squared shifts. A pull that is only noise is of about size 1, whatever the length of the step. A secure skill may
        also pull along the axis, but its push is small, because the quarantine does not hold the skill. Evidence is therefore the
        smaller of the pull and of the push, each in its own standard errors. While the environment's part has moved the stream
        away from the positive persona, a pull towards this persona only undoes this movement, so evidence is at most 0.
        """
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
        """Take the present values of the weights as those from which their movement is measured. Each process does so for the
        entries that it holds."""
        for target in self.quarantine.targets:
            target.weight.measure_start()

    def _reduce(self) -> None:
        """Combine ledgers, mean inputs and the random control of all processes, once a step, into those that a single process
        with all rows would have. Losses are scaled for gradients that are averaged over processes, so the ledger of all processes
        is the mean of their ledgers."""
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
        """Return the state of the quarantine, its optimizer, the environments' pushes and the pace, as tensors by name."""
        pushes = torch.tensor([self.pushes[name] for name in self.quarantine.environments], dtype=torch.float64)
        return self.quarantine.state_dict() | self.optimizer.state_dict() | {"pushes": pushes} | self.pace.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. SubspaceError or CheckpointError if the state does not fit this run."""
        self.quarantine.load_state_dict(state)
        self.optimizer.load_state_dict(state)
        self.pace.load_state_dict(state)
        self.pushes = dict(zip(self.quarantine.environments, state["pushes"].tolist(), strict=True))
