"""Runs the monitor beside a trainer. The metrics of each step are judged when they are written, a verdict is reported once, and
the trainer is asked to stop if a verdict halts the run."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from transformers import TrainerControl

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.monitor import Monitor, Row, Verdict
from routed_rl.ranks import RANKS
from routed_rl.tracking import MetricsFile, practised


class Watch:
    """Runs the monitor of a run: writes its verdicts to `verdicts.jsonl`, stops the trainer, and knows which environments may be
    trusted to practise."""

    def __init__(self, monitor: Monitor, run: RunFolder, *, decides: bool = True) -> None:
        """`run`: the folder of the run. `decides`: whether verdicts decide which environments practise, as with
        `routing.practice.environments=auto`."""
        self.monitor, self.run, self.decides, self.file = monitor, run, decides, MetricsFile(run.verdicts)
        self.halting: list[Verdict] = []
        """Those verdicts on the step judged last that halt the run."""
        self._said: set[tuple[str, str]] = set()
        self.step, self.fresh_from = 0, 0
        """The last step that was judged, and the step after which the present mixture of environments began."""
        self.pointed: set[str] = set()
        """The environments that a rule has named since the present mixture of environments began."""
        self.suspected: set[str] = set()
        """The environments against which evidence is growing, though not yet enough for a verdict."""
        self.practising = Counter[str]()
        """For each environment that no rule has named, from how many of its completions the deployed model has learned."""

    def replay(self, rows: Sequence[Row], halted: set[int], fresh_from: int = 0) -> None:
        """Judge once more the rows (metrics of one step each) that an earlier process of the run has judged, so that a resumed
        run goes on like one that never stopped. Nothing is written or reported. All that this object has judged before is
        forgotten first, so that a script may resume a run with the same trainer object.

        `halted`: the steps after which the monitor had halted the run. After each of these steps the rules that halt are armed
        again, as they were when the run was resumed. `fresh_from`: the last step before a rollback changed the environments;
        all rules are armed again after it, and verdicts up to this step do not keep an environment from practising. 0: the
        environments never changed.
        """
        self.monitor, self.halting = Monitor(self.monitor.config, self.monitor.ignore), []
        self._said, self.pointed, self.suspected, self.practising = set(), set(), set(), Counter()
        self.step, self.fresh_from = 0, fresh_from
        for row in rows:
            verdicts = self._judge(row)
            self._said |= {(verdict.rule, verdict.environment) for verdict in verdicts}
            self.halting = [verdict for verdict in verdicts if verdict.halts]
            if row["step"] in halted:
                self.monitor.rearm(whole=row["step"] == fresh_from)
                self.halting = []

    def see(self, row: dict[str, Any], control: TrainerControl) -> None:
        """Judge the row (the metrics) of a step; the first process judges for all processes. After a verdict that halts, the
        trainer is told through `control` to write a checkpoint of this step and to stop."""
        verdicts, self.pointed, self.suspected, self.step = RANKS.first(
            (self._judge(row), self.pointed, self.suspected, self.step) if RANKS.rank == 0 else None)
        for verdict in verdicts if RANKS.rank == 0 else []:
            self.file.append(verdict.step, {key: value for key, value in verdict.record().items() if key != "step"})
            if (key := (verdict.rule, verdict.environment)) not in self._said:
                self._said.add(key)
                console.say(f"monitor: step {verdict.step}: {verdict.sentence()}" + (": halting" if verdict.halts else ""))
            if count := self.practising.pop(verdict.environment, 0):
                goes_on = "practises no more" if self.decides else "goes on practising, as routing.practice.environments says"
                console.say(f"practice: {verdict.environment} {goes_on}. The deployed model has learned from {count} of its "
                            f"completions; {self.run.go_back} takes that back")
        self.halting = [verdict for verdict in verdicts if verdict.halts]
        if self.halting:
            control.should_save = control.should_training_stop = True

    def _judge(self, row: Row) -> list[Verdict]:
        before = set(self.monitor.found)
        verdicts, self.step = self.monitor.judge(row), int(row["step"])
        self.practising.update({name: count for name, count in practised([row]).items() if name not in self.pointed})
        if self.step > self.fresh_from:
            # An environment that is found in the warmup, which has no verdicts, may have stopped pulling when they begin.
            self.pointed |= {verdict.environment for verdict in verdicts if verdict.environment} | self.monitor.found - before
        self.suspected = {name for _, name in self.monitor.detectors if self.monitor.suspects(name)}
        return verdicts

    def trusted(self, environments: Collection[str], probation: int) -> list[str]:
        """Return those of `environments` that may practise: no rule has named them since the present mixture of environments
        began, they are not suspected now, and the settings have a limit on their evidence (without a limit, an environment could
        never be suspected). No environment may practise until `probation` steps have passed since the mixture began."""
        if self.step - self.fresh_from < probation:
            return []
        return [name for name in environments if name not in self.pointed and name not in self.suspected
                and self.monitor.config.evidence.limit_of(name) is not None]
