"""Runs the monitor beside a trainer: it judges each row when the row is written, reports each verdict once, and asks the trainer
to stop."""

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
    """The monitor of a run. It writes verdicts to `verdicts.jsonl`, and keeps those that halt the run in `halting`."""

    def __init__(self, monitor: Monitor, run: RunFolder, *, decides: bool = True) -> None:
        """`decides`: whether verdicts decide which environments practise, as with `routing.practice.environments=auto`."""
        self.monitor, self.run, self.decides, self.file = monitor, run, decides, MetricsFile(run.verdicts)
        self.halting: list[Verdict] = []
        """The verdicts of the last step that halt the run."""
        self._said: set[tuple[str, str]] = set()
        self.step, self.fresh_from = 0, 0
        """The last step that was judged, and the step after which the present environments began."""
        self.pointed: set[str] = set()
        """Environments that a rule has named since the present environments began."""
        self.suspected: set[str] = set()
        """Environments against which there is growing evidence."""
        self.practising = Counter[str]()
        """For environments that are not named, how many completions the deployed model has learned from."""

    def replay(self, rows: Sequence[Row], halted: set[int], fresh_from: int = 0) -> None:
        """Judge again the rows that an earlier process has judged, so that a resumed run continues like one that never stopped.
        `halted` are the steps after which it had halted and was resumed; `fresh_from` is the last step before other environments
        began."""
        self.fresh_from = fresh_from
        for row in rows:
            verdicts = self._judge(row)
            self._said |= {(verdict.rule, verdict.environment) for verdict in verdicts}
            self.halting = [verdict for verdict in verdicts if verdict.halts]
            if row["step"] in halted:
                self.monitor.rearm()
                self.halting = []

    def see(self, row: dict[str, Any], control: TrainerControl) -> None:
        """Judge the row of a step; the first process judges for all of them. After a verdict that halts, the training stops with
        a checkpoint of this step."""
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
        """The environments that may practise: no rule has named them since the present environments began, and they are not
        suspected. Empty before `probation` steps have passed. An environment without a limit on its evidence cannot be suspected,
        so it is not trusted."""
        if self.step - self.fresh_from < probation:
            return []
        return [name for name in environments if name not in self.pointed and name not in self.suspected
                and self.monitor.config.evidence.limit_of(name) is not None]
