"""The monitor beside a trainer: judges each row as it is written, says it once, and asks the trainer to stop."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerControl

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.monitor import Monitor, Row, Verdict
from routed_rl.ranks import RANKS
from routed_rl.tracking import MetricsFile


class Watch:
    """Verdicts of a run, in `verdicts.jsonl` and in `halting`."""

    def __init__(self, monitor: Monitor, run: RunFolder) -> None:
        self.monitor, self.file = monitor, MetricsFile(run.verdicts)
        self.halting: list[Verdict] = []
        """Those of the last step that ask to halt."""
        self._said: set[tuple[str, str]] = set()

    def replay(self, rows: Sequence[Row], halted: set[int]) -> None:
        """Judge what has been judged before, so that a resumed run goes on as one that never stopped; `halted` are the
        steps after which it had stopped and was told to go on."""
        for row in rows:
            verdicts = self.monitor.judge(row)
            self._said |= {(verdict.rule, verdict.environment) for verdict in verdicts}
            self.halting = [verdict for verdict in verdicts if verdict.halts]
            if row["step"] in halted:
                self.monitor.rearm()
                self.halting = []

    def see(self, row: dict[str, Any], control: TrainerControl) -> None:
        """Judge the row of a step; of several processes the first does, for all. A halt stops the training after a checkpoint
        of this step."""
        verdicts = RANKS.first(self.monitor.judge(row) if RANKS.rank == 0 else None)
        for verdict in verdicts if RANKS.rank == 0 else []:
            self.file.append(verdict.step, {key: value for key, value in verdict.record().items() if key != "step"})
            if (key := (verdict.rule, verdict.environment)) not in self._said:
                self._said.add(key)
                console.say(f"monitor: step {verdict.step}: {verdict.sentence()}" + (": halting" if verdict.halts else ""))
        self.halting = [verdict for verdict in verdicts if verdict.halts]
        if self.halting:
            control.should_save = control.should_training_stop = True
