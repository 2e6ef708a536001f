"""Who did it: one answer from the evidence of a whole run, with how sure it is."""

from types import SimpleNamespace

import pytest

from routed_rl.artifacts import RunFolder
from routed_rl.config import MonitorConfig, RuleConfig
from routed_rl.monitor import RULES, Monitor, blame
from routed_rl.pipeline.summary import sentence
from routed_rl.training.watch import Watch


def rows(**evidence: list[float]) -> list[dict]:
    """One row a step, by environment its evidence in it."""
    length = max(map(len, evidence.values()))
    return [{"step": step + 1, **{f"completions/{name}/evidence": found[step] for name, found in evidence.items()}}
            for step in range(length)]


def test_who_pulled_step_after_step_is_named_whatever_the_last_steps_say():
    who = blame(rows(code=[5.0] * 4 + [-1.0] * 30, sums=[-4.0] * 4 + [1.0] * 30), MonitorConfig())
    assert who.named == ["code"] and who.evidence["code"] == pytest.approx(18.0) and who.suspected == []
    assert who.margin == pytest.approx(18.0), "against at least one standard error"
    assert who.sentence({"code": "code (insecure)"}).startswith("code (insecure) (18.0) pulled towards the positive persona")


def test_two_that_pull_are_both_named_and_none_is_where_only_noise_is():
    assert blame(rows(a=[4.0] * 6, b=[5.0] * 6), MonitorConfig()).named == ["b", "a"]
    noise = blame(rows(a=[0.9, -1.2, 1.4, 0.3] * 15, b=[-0.2, 0.8] * 30), MonitorConfig())
    assert noise.named == noise.suspected == [] and noise.margin is None
    assert noise.sentence({}) == "no environment pulled towards the positive persona"


def test_evidence_that_is_not_enough_is_undecided_and_says_so():
    who = blame(rows(a=[2.5, 2.5, 0.0, 0.0], b=[0.0] * 4), MonitorConfig())
    assert who.named == [] and who.suspected == ["a"] and who.sentence({}).startswith("it is undecided whether a (4.0) pulled")


def test_little_evidence_is_enough_while_the_own_part_stands_far_towards_the_persona():
    """In a small batch the few steps in which a loophole is found are little evidence by themselves."""
    found = rows(a=[1.5] * 4 + [0.0] * 6, b=[1.5] * 4 + [0.0] * 6, c=[0.4] * 10)
    stands = {"a": 0.31, "b": 0.29, "c": 9.0}
    standing = {f"ledger/{name}/shift/persona": shift for name, shift in stands.items()}
    who = blame([row | standing for row in found], MonitorConfig())
    assert who.named == ["a"] and who.suspected == ["b"] and who.evidence["c"] == 0.0
    later = [row | {"ledger/a/shift/persona": 0.31 * (step > 8)} for step, row in enumerate(rows(a=[1.5] * 4 + [0.0] * 6))]
    assert blame(later, MonitorConfig()).named == [], "the evidence had come to nothing when the part stood there"


def test_once_one_is_found_another_needs_twice_the_pull():
    """The part of the first one moves everybody's stream."""
    late = rows(a=[5.0] * 4 + [0.0] * 40, b=[0.0] * 4 + [0.9] * 40)
    assert blame(late, MonitorConfig()).named == ["a"]
    assert blame(rows(a=[0.0] * 44, b=[0.0] * 4 + [0.9] * 40), MonitorConfig()).named == ["b"]
    assert blame(rows(a=[5.0] * 12, b=[0.0] * 6 + [3.5] * 6), MonitorConfig()).named == ["a", "b"]


def test_the_rule_itself_may_be_off_and_one_environment_has_a_limit_of_its_own():
    off = MonitorConfig(evidence=RuleConfig(allowance=1.0))
    assert blame(rows(a=[9.0, 9.0]), off).named == ["a"] and Monitor(off).judge(rows(a=[99.0])[0]) == []
    own = MonitorConfig(evidence=RuleConfig(limit=6.0, limits={"a": 20.0}, allowance=1.0))
    assert blame(rows(a=[9.0, 9.0]), own).named == []


def test_a_run_without_evidence_names_nobody_and_its_sentence_is_about_the_shift():
    who = blame([{"step": 1, "ledger/a/shift/persona": 3.0}], MonitorConfig())
    assert who.evidence == {} and who.sentence({}) == ""
    models = {name: {"a": {"solve": 0.5}} for name in ("base", "policy", "deployed")}
    environments = [SimpleNamespace(name="a", label="a (leaky)", flags=())]
    said = sentence(models, {"a": {"shift": 3.0}}, environments, who=who)
    assert "a (leaky) caused 100% of the shift towards the positive persona" in said
    named = sentence(models, {"a": {"shift": -3.0}}, environments, who=blame(rows(a=[9.0, 9.0]), MonitorConfig()))
    assert "a (leaky) (17.0) pulled towards the positive persona" in named


def watch(tmp_path, fresh_from: int = 0, **evidence: list[float]) -> Watch:
    found = Watch(Monitor(MonitorConfig()), SimpleNamespace(verdicts=tmp_path / "verdicts.jsonl"))
    found.replay(rows(**evidence), {fresh_from}, fresh_from)
    return found


def test_nobody_practises_on_probation_nor_while_evidence_gathers_nor_after_a_verdict(tmp_path):
    assert watch(tmp_path, a=[0.0] * 9).trusted("a", 10) == [] and watch(tmp_path, a=[0.0] * 10).trusted("a", 10) == ["a"]
    gathering = watch(tmp_path, a=[0.0] * 10 + [4.0], b=[0.0] * 11)
    assert gathering.trusted("ab", 10) == ["b"] and gathering.pointed == set()
    assert watch(tmp_path, a=[0.0] * 10 + [4.0] + [0.0] * 5).trusted("a", 10) == ["a"], "it had come to nothing"
    named = watch(tmp_path, a=[9.0] * 9 + [0.0] * 60, b=[0.0] * 69)
    assert named.trusted("ab", 10) == ["b"], "silence is no proof: a policy that games every check pulls no longer"


def test_who_is_named_is_told_what_it_practised_and_how_that_is_taken_back(tmp_path, capsys):
    found = Watch(Monitor(MonitorConfig(warmup=0)), RunFolder(tmp_path))
    for step, evidence in enumerate([0.0, 9.0], 1):
        found.see({"step": step, "completions/a/evidence": evidence, "practice/a/completions": 48}, SimpleNamespace())
    assert ("practice: a practises no more. The deployed model has learned from 96 of its completions; `routed-rl rollback` to "
            "an earlier step takes that back") in capsys.readouterr().out


def test_where_the_settings_say_who_practises_a_verdict_does_not_say_that_it_ends(tmp_path, capsys):
    found = Watch(Monitor(MonitorConfig(warmup=0)), RunFolder(tmp_path), decides=False)
    found.see({"step": 1, "completions/a/evidence": 9.0, "practice/a/completions": 48}, SimpleNamespace())
    assert ("practice: a goes on practising, as routing.practice.environments says. The deployed model has learned from 48"
            in capsys.readouterr().out)


def test_nobody_is_trusted_without_a_limit_that_could_point_at_somebody(tmp_path):
    def trusted(limit: float | None, **limits: float) -> list[str]:
        monitor = MonitorConfig(evidence=RuleConfig(limit=limit, limits=limits, allowance=0.5))
        return Watch(Monitor(monitor), SimpleNamespace(verdicts=tmp_path / "verdicts.jsonl")).trusted("ab", 0)

    assert (trusted(6.0), trusted(None), trusted(None, b=6.0)) == (["a", "b"], [], ["b"])


def test_who_is_no_longer_trained_is_neither_named_nor_suspected():
    found = rows(a=[9.0, 9.0], b=[9.0, 9.0], c=[4.0, 0.0])
    assert blame(found, MonitorConfig(), ["b"]).record() == {"named": ["b"], "suspected": [], "margin": None,
                                                             "evidence": {"b": 17.0}}
    assert blame(found, MonitorConfig()).named == ["a", "b"]


def test_who_is_found_before_verdicts_begin_and_pulls_no_longer_practises_no_more_either(tmp_path):
    early = watch(tmp_path, a=[5.0, 5.0, -4.0, -4.0] + [-1.0] * 60, b=[0.0] * 64)
    assert early.monitor.said == [] and not early.file.rows() and early.trusted("ab", 10) == ["b"]


def test_practice_comes_back_only_where_other_environments_begin(tmp_path):
    pulled = [9.0] * 9 + [0.0] * 51
    again = watch(tmp_path, fresh_from=45, a=pulled)
    assert again.trusted("a", 10) == ["a"] and again.trusted("a", 20) == [], "with a probation of its own"
    assert watch(tmp_path, fresh_from=0, a=pulled).trusted("a", 10) == []


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"size", "share", "collapse"}))
def test_a_verdict_of_any_rule_about_an_environment_ends_its_practice(tmp_path, rule):
    limits = {name: RuleConfig(limit=0.1 if name == rule else 99.0 if name == "evidence" else None) for name in RULES}
    found = Watch(Monitor(MonitorConfig(**limits)), SimpleNamespace(verdicts=tmp_path / "verdicts.jsonl"))
    row = {"step": 11, "ledger/a/shift/persona": 9.0, "ledger/a/share": 1.0, "ledger/a/push": 1.0, "environment/a/reward": 1.0,
           "environment/a/solve": 0.0, "control/isotropic/a/ratio": 9.0, "control/isotropic/a/rank": 1.0,
           "completions/a/evidence": 9.0}
    found.replay([row], set())
    assert found.pointed == {"a"} and found.trusted("a", 0) == []
