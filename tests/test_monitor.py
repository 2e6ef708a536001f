"""The monitor's rules: each finds what it is for, and nothing where there is nothing."""

from __future__ import annotations

import math
import random

import pytest
from transformers import TrainerControl

from routed_rl.artifacts import RunFolder
from routed_rl.config import MonitorConfig, RandomControlConfig, RoutingConfig, RuleConfig
from routed_rl.errors import ConfigError
from routed_rl.monitor import RULES, Monitor, Verdict, never_halting
from routed_rl.tracking import MetricsFile
from routed_rl.training.watch import Watch

OFF = {name: RuleConfig() for name in RULES}


def config(**rules: RuleConfig) -> MonitorConfig:
    return MonitorConfig(warmup=0, **(OFF | rules))


def judged(settings: MonitorConfig, rows: list[dict], **kwargs):
    """(step, environment, since) of every verdict."""
    monitor = Monitor(settings, **kwargs)
    return [(verdict.step, verdict.environment, verdict.since) for step, row in enumerate(rows, start=1)
            for verdict in monitor.judge({"step": step, **row})]


def going_on(settings: MonitorConfig, rows: list[dict]) -> list[tuple[int, str, int]]:
    """(step, rule, since) of every verdict of a run that is told to go on after each of its halts."""
    monitor, found = Monitor(settings), []
    for step, row in enumerate(rows, start=1):
        verdicts = monitor.judge({"step": step, **row})
        found += [(step, verdict.rule, verdict.since) for verdict in verdicts]
        if any(verdict.halts for verdict in verdicts):
            monitor.rearm()
    return found


def shifts(*values: float, name: str = "a", axis: str = "persona") -> list[dict]:
    return [{f"ledger/{name}/shift/{axis}": value, f"ledger/{name}/shift/component_1": 9.0} for value in values]


READINGS = {
    "shift": ({"ledger/a/shift/persona": 0.6, "ledger/a/shift/component_1": 9.0}, "a", 0.6),
    "change": ({"ledger/a/shift/persona": 0.6}, "a", 0.6),
    "pull": ({"ledger/a/shift/persona": 0.6, "ledger/a/share": 0.5, "ledger/b/shift/persona": 0.9, "ledger/b/share": 0.1},
             "a", 0.3),
    "push": ({"ledger/a/push": 3.0, "ledger/b/push": 1.0, "ledger/c/push": -5.0}, "a", 0.75),
    "gap": ({"environment/a/reward": 0.9, "environment/a/solve": 0.2}, "a", 0.7),
    "evidence": ({"completions/a/evidence": 4.5, "completions/b/evidence": -9.0, "completions/a/own_shift": 9.0}, "a", 4.5),
    "energy": ({"control/isotropic/a/ratio": 4.0, "control/isotropic/all/ratio": 9.0, "control/matched/a/ratio": 7.0}, "a", 4.0),
    "energy_rank": ({"control/matched/a/rank": 4.0, "control/matched/all/rank": 1.0, "control/isotropic/b/rank": 5.0}, "a", 0.25),
    "size": ({"quarantine/relative": 2.0}, "", 2.0),
    "share": ({"routing/routed_fraction": 0.95}, "", 0.95),
    "collapse": ({"train/frac_reward_zero_std": 1.0}, "", 1.0),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_reads_its_own_quantity_and_judges_it_against_its_limit(name):
    row, environment, value = READINGS[name]
    over, under = (Monitor(config(**{name: RuleConfig(limit=limit)})) for limit in (value - 0.01, value + 0.01))
    (verdict,) = over.judge({"step": 3, **row})
    assert (verdict.rule, verdict.environment, verdict.step) == (name, environment, 3)
    assert verdict.value == pytest.approx(value) and "step 3" in verdict.sentence()
    assert ("; it began to grow at step" in verdict.sentence()) == (RULES[name].sums or RULES[name].of_shift)
    assert under.judge({"step": 3, **row}) == []
    assert Monitor(config()).judge({"step": 3, **row}) == []
    assert over.judge({"step": 4}) == []  # A row that does not say.


def test_null_is_no_reading():
    rows = [{"ledger/a/shift/persona": None, "environment/a/reward": None, "environment/a/solve": 1.0,
             "routing/routed_fraction": None}]
    assert judged(MonitorConfig(warmup=0), rows) == []


def test_the_change_detector_names_the_step_at_which_a_slow_growth_began():
    rows = shifts(0, 0.05, 0, 0, 0, *(0.03 * step for step in range(1, 12)))
    settings = config(change=RuleConfig(limit=0.15, allowance=0.005))
    (step, environment, since), *_ = judged(settings, rows)
    assert (environment, since) == ("a", 6) and step == 12


def test_what_swings_is_not_summed_up_and_what_drifts_is():
    settings = config(change=RuleConfig(limit=0.1, allowance=0.01))
    assert judged(settings, shifts(*(0.04 * (step % 2) for step in range(300)))) == []
    assert judged(settings, shifts(*(0.009 * step for step in range(300)))) == []
    assert judged(settings, shifts(*(0.02 * step for step in range(300)))) != []


def test_a_shift_away_from_the_persona_is_none():
    assert judged(config(shift=RuleConfig(limit=0.5), change=RuleConfig(limit=0.1)), shifts(*(-0.1 * n for n in range(50)))) == []


def test_another_axis_can_be_named():
    rows = shifts(0.9, axis="persona")
    assert judged(config(shift=RuleConfig(limit=0.5)), rows) != []
    settings = config(shift=RuleConfig(limit=10.0))
    settings.axis = "component_1"
    assert judged(settings, rows) == []
    settings.shift.limit = 8.0
    assert judged(settings, rows) == [(1, "a", 1)]


def test_patience_counts_steps_in_a_row_and_warmup_holds_verdicts_back():
    rows = shifts(1, 1, 0, 1, 1, 1, 1)
    assert judged(config(shift=RuleConfig(limit=0.5, patience=3)), rows) == [(6, "a", 4), (7, "a", 4)]
    late = config(shift=RuleConfig(limit=0.5))
    late.warmup = 5
    assert [step for step, *_ in judged(late, rows)] == [6, 7]


def test_after_a_halt_new_evidence_is_needed():
    monitor = Monitor(config(change=RuleConfig(limit=0.25, action="halt")))
    rows = [{"step": step, **row} for step, row in enumerate(shifts(*(0.1 * n for n in range(8))), start=1)]
    assert [len(monitor.judge(row)) for row in rows[:4]] == [0, 0, 0, 1]
    monitor.rearm()
    assert [len(monitor.judge(row)) for row in rows[4:]] == [0, 0, 1, 1]


def test_a_rule_that_only_reports_goes_on_reporting_after_a_halt_by_another_or_once_nothing_halts_any_more(tmp_path):
    """Also in the run's record. A rollback to other environments begins anew."""
    rows = [{"step": step, **row, "quarantine/relative": 2.0} for step, row in enumerate(shifts(0, 0.6, 0.6, 0.6, 0.6), start=1)]
    halting = config(shift=RuleConfig(limit=0.5), change=RuleConfig(limit=0.5), size=RuleConfig(limit=1.0, action="halt"))
    for settings, fresh, said in ((halting, 0, {"shift", "change"}), (halting.reporting(), 0, {"shift", "change", "size"}),
                                  (halting, 3, set())):
        run = RunFolder(tmp_path / f"{fresh}{len(said)}")
        run.path.mkdir()
        watch = Watch(Monitor(settings), run)
        watch.replay(rows[:3], {3}, fresh)
        for row in rows[3:]:
            watch.see(row, TrainerControl())
        found = [(row["step"], row["rule"]) for row in MetricsFile(run.verdicts).rows()]
        assert found == [(step, rule) for step in (4, 5) for rule in ("shift", "change", "size") if rule in said]


@pytest.mark.parametrize("name", ["shift", "pull", "push", "energy", "size", "share", "collapse"])
def test_a_level_halts_again_when_it_has_grown_by_another_limit_or_has_come_back_and_gone_again(name):
    """Of each level the readings are `levels`, and its limit is 1."""
    def row(level):
        return {"shift": {"ledger/a/shift/persona": level},
                "pull": {"ledger/a/shift/persona": level, "ledger/a/share": 1.0},
                "push": {"ledger/a/push": level, "ledger/b/push": 10 - level},
                "energy": {"control/isotropic/a/ratio": level}, "size": {"quarantine/relative": level},
                "share": {"routing/routed_fraction": level}, "collapse": {"train/frac_reward_zero_std": level}}[name]

    unit = 0.1 if name == "push" else 1.0
    settings = config(**{name: RuleConfig(limit=unit, limits={"b": 99.0}, action="halt")}, change=RuleConfig(allowance=0.4))

    def halts(*levels):
        return [step for step, *_ in going_on(settings, [row(level) for level in levels])]

    assert halts(0.5, 1.1, 1.2, 2.0, 1.9, 2.05, 2.15, 2.3, 3.1, 3.2) == [2, 7, 10]
    assert halts(0.5, 1.8, 1.1, 1.7, 0.9, 1.1, 1.2) == [2, 6]
    assert going_on(settings, [row(level) for level in (0.5, 1.1, 1.1, 1.1, 2.4, 2.4, 3.6)]) == [
        (step, name, 1 if RULES[name].of_shift else 2) for step in (2, 5, 7)], "since the first, though it stood still"


def test_a_level_below_nothing_needs_to_grow_by_its_size():
    settings = config(shift=RuleConfig(limit=-0.1, action="halt"))
    assert [step for step, *_ in going_on(settings, shifts(-0.05, -0.04, 0.04, 0.06))] == [1, 4]


def test_a_level_that_was_not_spoken_of_at_a_halt_speaks_in_its_time():
    settings = config(shift=RuleConfig(limit=0.5, patience=3, action="halt"), size=RuleConfig(limit=1.0, action="halt"))
    rows = [row | {"quarantine/relative": size} for row, size in zip(shifts(0, 1, 1, 1, 1), (0, 0, 2, 2, 2), strict=True)]
    assert going_on(settings, rows) == [(3, "size", 3), (4, "shift", 2)]


def test_what_is_summed_up_begins_at_0_after_a_halt_but_keeps_the_step_it_began_with_until_it_would_have_been_back_at_0():
    settings = config(gap=RuleConfig(limit=1.0, allowance=0.1, action="halt"))
    rows = [{"environment/a/reward": paid, "environment/a/solve": 0.0} for paid in (0, .7, .7, 0, .7, .7, *[0] * 25, .7, .7)]
    assert going_on(settings, rows) == [(3, "gap", 2), (6, "gap", 2), (33, "gap", 32)]


def test_a_run_that_goes_on_is_judged_from_its_rows_alone(tmp_path):
    """Wherever it is taken up again, and also where it halted more than once."""
    settings = config(pull=RuleConfig(limit=0.1, action="halt"), gap=RuleConfig(limit=1.0, allowance=0.1, action="halt"))
    draw = random.Random(0)
    rows = [{"step": step, "ledger/a/shift/persona": 0.02 * step + draw.gauss(0, 0.05), "ledger/a/share": 0.6,
             "environment/a/reward": draw.random(), "environment/a/solve": 0.3} for step in range(1, 60)]
    straight, found, halted = Monitor(settings), list[list[Verdict]](), set[int]()
    for row in rows:
        found.append(straight.judge(row))
        if found[-1]:
            halted.add(row["step"])
            straight.rearm()
    assert len(halted) > 8 and {verdict.rule for verdicts in found for verdict in verdicts} == {"pull", "gap"}
    for at in range(len(rows)):
        watch = Watch(Monitor(settings), RunFolder(tmp_path))
        watch.replay(rows[:at], {step for step in halted if step <= at})
        assert not watch.halting and watch.monitor.judge(rows[at]) == found[at]
        watch.replay(rows[:at], {step for step in halted if step <= at})  # a script may go on in the same process
        assert watch.monitor.judge(rows[at]) == found[at]


def test_an_environment_that_is_no_longer_trained_is_not_judged():
    assert judged(config(shift=RuleConfig(limit=0.5)), shifts(1), ignore=["a"]) == []


def test_only_what_is_asked_to_halts():
    def halts(settings):
        return [verdict.halts for verdict in Monitor(settings).judge({"step": 1, **shifts(1)[0]})]

    settings = config(shift=RuleConfig(limit=0.5, action="halt"))
    assert halts(settings) == [True] and halts(settings.reporting()) == [False]
    assert settings.reporting().shift.limit == 0.5


@pytest.mark.parametrize("settings", [{"action": "stop"}, {"allowance": -1}, {"patience": 0}])
def test_a_rule_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match="monitor"):
        RuleConfig(**settings)


@pytest.mark.parametrize(("rule", "key"), [({"limit": math.nan}, "limit"), ({"limit": math.inf}, "limit"),
                                           ({"limits": {"a": math.nan}}, "limits.a"), ({"allowance": math.nan}, "allowance")])
def test_a_limit_that_nothing_passes_or_everything_is_refused(rule, key):
    with pytest.raises(ConfigError, match=rf"monitor\.gap\.{key} must be a finite number, got (nan|inf)"):
        MonitorConfig(gap=RuleConfig(**rule))


def test_the_subspace_is_above_both_kinds_of_random_bases_before_a_patience_of_two_is_over():
    settings = config(energy_rank=RuleConfig(limit=0.9, patience=2))
    kinds, nothing = ("isotropic", "matched", "isotropic", "matched"), [{}] * 15
    rows = [row for kind, rank in zip(kinds, (1, 2, 1, 1), strict=True) for row in ({f"control/{kind}/a/rank": rank}, *nothing)]
    assert judged(settings, rows) == [(49, "a", 33)]


def test_a_level_that_is_passed_late_names_the_step_at_which_the_growth_began():
    quiet, growing = [0.0, 0.01, -0.01, 0.0], [0.05 * step for step in range(1, 8)]
    settings = config(shift=RuleConfig(limit=0.32), change=RuleConfig(allowance=0.02))
    assert judged(settings, shifts(*quiet, *growing))[0] == (11, "a", 5)
    assert judged(settings, shifts(0.4)) == [(1, "a", 1)]


def test_a_limit_of_one_environment_goes_before_that_of_all():
    rows = [{"ledger/a/shift/persona": 0.3, "ledger/b/shift/persona": 0.3}]
    assert [name for _, name, _ in judged(config(shift=RuleConfig(limit=0.5, limits={"a": 0.2})), rows)] == ["a"]
    assert [name for _, name, _ in judged(config(shift=RuleConfig(limit=0.2, limits={"a": 0.5})), rows)] == ["b"]
    assert [name for _, name, _ in judged(config(shift=RuleConfig(limits={"b": 0.2})), rows)] == ["b"]


@pytest.mark.parametrize(("routing", "steps", "named"), [
    (RoutingConfig(), 6, []), (RoutingConfig(mode="none"), 6, ["pull", "evidence", "energy"]),
    (RoutingConfig(mode="erase"), 6, ["pull"]), (RoutingConfig(random_control=RandomControlConfig(every=0)), 6, ["energy"]),
    (RoutingConfig(), 5, ["pull", "evidence", "gap", "energy", "collapse"]), (RoutingConfig(), -1, [])])
def test_rules_that_are_to_halt_and_that_a_run_does_not_feed_are_named(routing, steps, named):
    stops = RuleConfig(limit=1.0, action="halt")
    monitor = MonitorConfig(pull=stops, evidence=stops, gap=stops, energy=stops, collapse=stops)
    assert [line.split()[0] for line in never_halting(monitor, routing, steps)] == named
    assert never_halting(monitor.reporting(), routing, steps) == []


def test_a_rule_that_is_to_halt_needs_a_limit_unless_the_run_began_without():
    endless = MonitorConfig(pull=RuleConfig(action="halt"))
    with pytest.raises(ConfigError, match=r"monitor\.pull\.action=halt has no limit, .*; set .*pull\.limit, which .*calibrate"):
        endless.check_halting()
    with pytest.raises(ConfigError, match=r"set monitor\.evidence\.limit, such as limit=6 and allowance=0\.5, its defaults"):
        MonitorConfig(evidence=RuleConfig(action="halt")).check_halting(endless)
    endless.check_halting(endless)
    MonitorConfig(pull=RuleConfig(limits={"a": 1.0}, action="halt"), evidence=RuleConfig()).check_halting()
