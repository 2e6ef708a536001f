"""Practice in whole runs: whole groups, rolled out and learned by the deployed model, with every algorithm, bit for bit."""

import shutil
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.config import from_mapping
from routed_rl.errors import ConfigError
from routed_rl.pipeline.plan import practice_sentence
from routed_rl.tracking import MetricsFile, practised
from routed_rl.training.generations import last_generation
from routed_rl.training.practice import Practice, check_practice, idle, untrusted
from tests import pipeline
from tests.algorithms import config_of, make_trainer
from tests.parts import own_config
from tests.tiers import tiered

ALL = {"mode": "route", "practice": {"environments": "all"}, "quarantine": {"pace": "fast"}}


def config(parts, out, routing=ALL, **changes):
    return own_config(parts, out, routing=routing, evaluation={"samples": 0}, discard=False, **changes)


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    return RunFolder(pipeline.train(config(parts, tmp_path_factory.mktemp("runs") / "once"), []))


def test_three_in_four_of_each_environments_groups_practise_none_is_cut_and_metrics_keep_them_apart(run):
    rows, files = MetricsFile(run.metrics).rows(), pd.concat(map(pd.read_parquet, run.completion_files()))
    for (_, _), group in files.groupby(["environment", "task"]):
        assert len(group) == 8 and group["practised"].nunique() == 1
    assert files.groupby("environment")["practised"].mean().tolist() == [0.75, 0.75]
    assert practised(rows) == {"a": int(files["practised"].sum()) // 2, "b": int(files["practised"].sum()) // 2}
    for row in rows:
        mine = files[files["step"] == row["step"]]
        for name, each in mine.groupby("environment"):
            for kind, chosen in (("environment", each[~each["practised"]]), ("practice", each[each["practised"]])):
                if len(chosen):
                    assert row[f"{kind}/{name}/reward"] == pytest.approx(chosen["reward"].mean())
    assert files[files["practised"]][["push", "shift"]].isna().all(axis=None), "what practised pushed nothing"


@pytest.mark.parametrize("step", tiered([2, 4], slow=[4]))
def test_a_run_that_is_resumed_practises_as_one_that_was_not_stopped_to_the_bit(parts, run, tmp_path, step):
    again = RunFolder(tmp_path / "again")
    shutil.copytree(run.path, again.path)
    for later in again.steps():
        if later > step:
            shutil.rmtree(again.checkpoint(later))
    again.summary.unlink()
    pipeline.resume(str(again.path), [], lambda _: config(parts, again.path))
    for name in ("model.safetensors", "quarantine.safetensors"):
        ours, theirs = (load_file(each.checkpoint(6) / name) for each in (run, again))
        assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
    assert practised(MetricsFile(again.metrics).rows()) == practised(MetricsFile(run.metrics).rows())


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo"])
def test_rows_that_practise_are_rolled_out_and_scored_by_the_deployed_model(parts, tmp_path, algorithm):
    """In chunks as TRL cuts them; the reference is each model by itself."""
    trainer = make_trainer(config_of(parts, tmp_path / "run", algorithm, ALL, max_steps=1), tmp_path / "run")
    router, seen = trainer.router, []
    for target in router.quarantine.targets:
        target.coefficients.normal_(generator=torch.Generator().manual_seed(0))
    generate = trainer.model.generate
    trainer.model.generate = lambda *args, **kwargs: seen.append(router.context.now.practising_B) or generate(*args, **kwargs)
    inputs = [row for index in range(4) for row in [{"prompt": trainer.reward.table.task(index)[1].prompt, "task_id": index,
                                                     "environment_id": trainer.reward.table.task(index)[0]}] * 8]
    output = trainer._generate_and_score_completions(inputs)
    assert output["practising"].equal(seen[0]) and output["practising"].view(4, 8).float().mean(1).tolist() == [0, 0, 1, 1]
    assert router.context.now.practising_B is None and trainer.rolling is None
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask, keep = torch.cat([output["prompt_mask"], output["completion_mask"]], 1), output["completion_ids"].shape[1]

    def logps(batch_size=None):
        with torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep, batch_size=batch_size)[0]

    policy = logps()
    with router.quarantine.ablated():
        deployed = logps()
    with trainer.rolling_out(output["practising"]):
        found = logps(batch_size=12)
    torch.testing.assert_close(found, torch.where(output["practising"][:, None], deployed, policy))
    assert not torch.allclose(policy, deployed)


def test_a_share_is_spread_evenly_and_the_same_for_every_process():
    table = type("Table", (), {"place": lambda _, index: (index % 2, index // 2), "names": ["a", "b"]})()
    quarter = Practice(0.25, lambda: ["a"], table)
    chosen = quarter.choose(range(32))
    assert [index // 2 for index in range(32) if chosen[index]] == [3, 7, 11, 15] and not any(chosen[1::2])
    assert chosen == quarter.choose(range(20)) + quarter.choose(range(20, 32))
    assert Practice(1.0, lambda: ["a", "b"], table).choose(range(6)) == [True] * 6
    assert not any(Practice(0.5, lambda: [], table).choose(range(6))) and not Practice(0.5, lambda: [], table).active


@pytest.mark.parametrize(("practice", "mode", "said"), [
    ({"environments": ["nobody"]}, "route", r"practice\.environments has nobody, which is not trained on; choose from a, b"),
    ({"environments": ["p"]}, "route", r"practice\.environments has p, which is not trained on"),
    ({"share": 0.001, "environments": "all"}, "route", r"practice\.share=0\.001 lets no whole group of a practise"),
    ({"share": 1.5}, "route", r"practice\.share must lie in \[0, 1\], got 1\.5"),
    ({"share": -0.5}, "route", r"practice\.share must be a number >= 0, got -0\.5"),
    ({"environments": "some"}, "route", r"practice\.environments=some is not known; .* list of names, such as \[some\]"),
    ({"environments": ["a"]}, "none", r"needs routing\.mode=route: in mode none there is no quarantine"),
    ({"environments": "all"}, "erase", r"needs routing\.mode=route: in mode erase"),
    ({"environments": 3}, "route", r"practice\.environments must be auto, all, or a list of names, got 3"),
])
def test_practice_that_cannot_be_is_refused_in_one_line_before_anything_is_written(parts, tmp_path, practice, mode, said):
    with pytest.raises(ConfigError, match=said) as caught:
        pipeline.train(config(parts, tmp_path / "run", {"mode": mode, "practice": practice}), [])
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_auto_means_nobody_where_there_is_no_quarantine_to_leave_out():
    for mode in ("none", "observe", "erase"):
        assert not from_mapping({"routing": {"mode": mode}}).routing.practises
    assert from_mapping({}).routing.practises and not from_mapping({"routing": {"practice": {"share": 0}}}).routing.practises


def test_auto_means_nobody_where_no_limit_on_evidence_could_point_at_somebody():
    off = {"monitor": {"evidence": {"limit": None}}}
    assert practice_sentence(from_mapping(off)) == "none: auto trusts nobody without a limit on monitor.evidence"
    assert practice_sentence(from_mapping({})).startswith("75% of the groups of every environment at which")


def test_an_environment_that_opens_later_has_groups_that_practise():
    loaded = [SimpleNamespace(name="a", weights=((0, 1.0),)), SimpleNamespace(name="b", weights=((0, 0.0), (100, 1.0)))]
    settings = from_mapping({"routing": {"practice": {"environments": "all"}}})
    check_practice(settings, loaded, 1000)
    with pytest.raises(ConfigError, match=r"share=0\.75 lets no whole group of a practise, because it has only 1 in this run"):
        check_practice(settings, loaded, 2)


@pytest.mark.parametrize(("practice", "last", "groups", "said"), [
    ({}, 9, {"a": 50}, "none in this run, whose completions are all made in its first 10 steps (routing.practice.probation)"),
    ({}, 10, {"a": 50, "b": 2}, ""),
    ({}, 10, {"a": 1, "b": 2}, "none of a (1), with too few groups in this run for routing.practice.share=0.75"),
    ({"environments": ["b"]}, 0, {"a": 1, "b": 50}, ""), ({"share": 0}, 0, {"a": 1}, ""),
    ({"probation": 0}, 0, {"a": 50}, "")])
def test_a_run_that_is_too_small_to_practise_says_so_in_a_line(practice, last, groups, said):
    assert idle(from_mapping({"routing": {"practice": practice}}).routing, last, groups) == said


@pytest.mark.parametrize(("practice", "evidence", "said"), [
    ({}, None, "none without a monitor, which says who may practise with routing.practice.environments=auto; give "
               "monitor=MonitorConfig(), or name the environments"),
    ({}, {}, ""), ({}, {"limit": None}, "none: auto trusts nobody without a limit on monitor.evidence"),
    ({}, {"limit": None, "limits": {"a": 6.0}}, "none of b, for which monitor.evidence has no limit"),
    ({"environments": "all"}, None, ""), ({"share": 0}, None, "")])
def test_whom_auto_never_trusts_is_said_in_a_line(practice, evidence, said):
    config = from_mapping({"routing": {"practice": practice}, "monitor": {"evidence": evidence or {}}})
    assert untrusted(config.routing, config.monitor if evidence is not None else None, ["a", "b"]) == said


def test_completions_are_made_last_before_the_last_step_or_so_many_steps_earlier_as_learn_from_them():
    own = {"num_iterations": 1, "generation_batch_size": 8, "num_generations": 4, "gradient_accumulation_steps": 2}
    for steps, last, found in ((2, 10, 9), (2, 1, 0), (8, 10, 8), (8, 8, 4), (8, 4, 0)):
        arguments: Any = SimpleNamespace(**own, steps_per_generation=steps, max_steps=last)
        assert last_generation(arguments) == found


def test_a_rollback_may_change_who_practises_and_a_dropped_environment_leaves_the_list(parts, run, tmp_path):
    """The first run practised all; no checkpoint stands on that."""
    listed = ALL | {"practice": {"environments": ["a", "b"]}}
    out = f"out={tmp_path / 'again'}"
    again = RunFolder(pipeline.rollback(str(run.path), 4, ["b"], False, ["routing.practice.environments=[a,b]", out],
                                        lambda _: config(parts, tmp_path / "again", listed)))
    assert again.settings()["routing"]["practice"]["environments"] == ["a"]
    assert (again.path / "overrides.txt").read_text().splitlines()[-2:] == ["~env.b", "routing.practice.environments=[a]"]
    assert set(practised(MetricsFile(again.metrics).rows()[4:])) == {"a"}
