"""Rollouts one generation ahead: which weights make which completions, that a resumed run is the same run, and where it is
refused. The server is a stand-in for vLLM behind real sockets."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmark.standin import StandIn
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.config import from_mapping
from routed_rl.envs.early import Early
from routed_rl.errors import ConfigError, RolloutError
from routed_rl.training.ahead import Ahead, Request
from routed_rl.training.plan import make_plan
from tests import pipeline
from tests.parts import own_config, typed, write_parts
from tests.training.test_resume import metrics, no_compose


@pytest.fixture
def server(tmp_path):
    """A server of the parts' model. The process that trains needs no vLLM for it."""
    server = StandIn(str(write_parts(tmp_path / "parts", heads=1) / "model"))
    yield server
    server.close()


def config_of(server, out, *, ahead=1, **changes):
    parts = out.parent / "parts"
    rollout = {"engine": "vllm_server", "urls": [server.url], "ahead": ahead, "retries": 0}
    return own_config(parts, out, rollout=rollout, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
def test_each_generation_comes_from_weights_that_are_as_many_steps_old_as_is_said(server, tmp_path, ahead):
    pipeline.train(config_of(server, tmp_path / "run", ahead=ahead, routing={"practice": {"share": 0}}), [])
    made = server.asked[:24:4]  # a request for each group
    assert server.asked[:24] == [weights for weights in made for _ in range(4)]
    _, *pushed = server.pushed  # first it reads its own weights again
    assert made == ([pushed[0], *pushed[:5]] if ahead else pushed[:6]) and len(set(pushed[:6])) > 3
    if ahead:
        assert [row["rollout/staleness"] for row in metrics(tmp_path / "run")[1:]] == [1] * 5
        ratios = [row["train/sampling/importance_sampling_ratio/mean"] for row in metrics(tmp_path / "run")]
        assert ratios[0] == pytest.approx(1, abs=1e-5) and max(abs(ratio - 1) for ratio in ratios) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{}, {"kind": "lora", "r": 4}])
@pytest.mark.parametrize("practice", [{"share": 0}, {"share": 0.5, "environments": "all"}])
def test_a_run_whose_server_dies_ends_with_one_line_and_resumed_it_is_the_run_that_was_not_stopped(server, tmp_path, practice,
                                                                                                   adapter):
    settings = {"routing": {"practice": practice}, "model": {"path": f"{tmp_path}/parts/model", "adapter": adapter}}
    whole = pipeline.train(config_of(server, tmp_path / "whole", **settings), [])
    run, complete = tmp_path / "run", server._complete

    def dies(body):
        if (run / "checkpoints" / "step-4").exists():
            raise ConnectionError("gone")
        return complete(body)

    server._complete = dies
    with pytest.raises(RolloutError, match=r"the server of the rollouts at .* failed 1 times at POST /v1/completions"):
        pipeline.train(config_of(server, run, **settings), [])
    server._complete = complete
    pipeline.resume(str(run), [], no_compose)
    rows, wanted = ([{key: value for key, value in row.items() if not key.startswith("parity/")} for row in metrics(each)]
                    for each in (run, whole))  # what a resume checks at its first rollout is no part of the law
    assert rows == wanted
    ours, theirs = (RunFolder(each).require_checkpoint() for each in (run, whole))
    for name, value in load_file(ours / "quarantine.safetensors").items():
        assert torch.equal(value, load_file(theirs / "quarantine.safetensors")[name])


@pytest.mark.parametrize(("changes", "wanted"), [
    ({"rollout": {"ahead": 1}}, r"rollout.ahead=1 asks a server .* rollout.engine=transformers has none"),
    ({"rollout": {"ahead": 1, "engine": "vllm_colocate"}}, "rollout.engine=vllm_colocate has none"),
    ({"rollout": {"ahead": 2, "engine": "vllm_server"}}, "rollout.ahead must be 0 or 1, got 2"),
    ({"rollout": {"ahead": 1, "engine": "vllm_server"}, "trainer": {"algorithm": "rloo", "max_steps": 1}},
     "TRL's rloo does not correct; set trainer=grpo"),
    ({"rollout": {"ahead": 1, "engine": "vllm_server"},
      "trainer": {"vllm_importance_sampling_correction": False, "max_steps": 1}},
     "trainer.vllm_importance_sampling_correction=false leaves"),
])
def test_it_is_refused_where_nothing_could_answer_or_nothing_corrects(tmp_path, changes, wanted):
    with pytest.raises(ConfigError, match=wanted):
        make_plan(from_mapping({"model": {"path": "x"}, **changes}), RunFolder(tmp_path / "run"), here=False)


def waiting(answer: Future) -> Ahead:
    """A trainer's request, not yet taken."""
    trainer = SimpleNamespace(practice=None, rollout_metrics={}, state=SimpleNamespace(global_step=3))
    ahead = Ahead(trainer, SimpleNamespace(engine=SimpleNamespace(lora=None), settle=lambda: None, waited_s=0.5), lambda *_: None)
    ahead.request = Request(["p", "q"], [False, True], 2, answer)
    return ahead


def answered(found=([[4, 5], [6]], [[[-1.0], [-2.0]], [[-0.5]]])) -> Future:
    answer: Future = Future()
    answer.set_result(found)
    return answer


def test_a_request_survives_a_checkpoint_and_is_taken_once_by_the_rows_that_it_is_for(tmp_path):
    torch.save(waiting(answered()).state(), tmp_path / "loop.pt")
    ahead = waiting(answered(([], [])))
    ahead.load(torch.load(tmp_path / "loop.pt", weights_only=True))
    assert ahead.choose([{"prompt": "p"}, {"prompt": "q"}], [7, 8]) == [False, True]
    assert ahead.take() == answered().result() and ahead.take() is None
    assert ahead.trainer.rollout_metrics == {"rollout/staleness": 1, "time/rollout_wait_s": 0.5}


def test_a_checkpoint_with_a_prompt_that_is_text_of_numpy_can_be_loaded(tmp_path):
    ahead = waiting(answered())
    ahead.request = Request([np.str_("p"), [{"role": "user", "content": np.str_("q")}]], [False, True], 2, answered())
    torch.save(ahead.state(), tmp_path / "loop.pt")
    ahead.load(torch.load(tmp_path / "loop.pt", weights_only=True))
    inputs = [{"prompt": np.str_("p")}, {"prompt": [{"role": "user", "content": np.str_("q")}]}]
    assert ahead.choose(inputs, [7, 8]) == [False, True]


def test_the_waits_of_all_generations_of_a_step_are_counted():
    ahead = waiting(answered())
    ahead.take()
    ahead.request, ahead.served.waited_s = Request(["p", "q"], [False, True], 3, answered()), 0.25
    ahead.take()
    assert ahead.trainer.rollout_metrics == {"rollout/staleness": 0, "time/rollout_wait_s": 0.75}


def test_a_request_for_other_prompts_is_dropped_and_a_failed_one_is_not_kept():
    ahead = waiting(answered())
    assert ahead.choose([{"prompt": "p"}, {"prompt": "other"}], [7, 8]) is None and ahead.take() is None
    failed: Future = Future()
    failed.set_exception(RolloutError("gone"))
    assert waiting(failed).state() is None
    with pytest.raises(RolloutError, match="gone"):
        waiting(failed).take()


@pytest.mark.parametrize("change", [{"prompts": ["p"]}, {"completions": [[4], ["x"]]}, {"step": "2"}, {"practising": [0, 1]}])
def test_a_stored_request_that_is_not_whole_is_refused(change):
    ahead = waiting(answered())
    stored = ahead.state()
    with pytest.raises(ValueError, match="not whole"):
        ahead.load(stored | change)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
def test_isolated_environments_score_groups_while_others_are_generated_and_each_completion_once(server, tmp_path, ahead,
                                                                                               monkeypatch):
    add = {"path": f"{tmp_path}/parts/environment.py:Add", "isolate": True}
    env = {"a": dict(add), "b": add | {"weight": 1}}
    begun: list[int] = []
    begin, take = Early.begin, Early.take
    monkeypatch.setattr(Early, "begin", lambda early, score, pairs: (begun.append(len(pairs)), begin(early, score, pairs))[1])
    missed: list[int] = []

    def taken(early, pairs):
        found = take(early, pairs)
        missed.append(sum(outcome is None for outcome in found))
        return found

    monkeypatch.setattr(Early, "take", taken)
    run = pipeline.train(config_of(server, tmp_path / "run", ahead=ahead, env=env), [])
    evaluated = 0 if not missed else sum(missed)  # evaluations hand nothing over early
    assert sum(begun) == 6 * 32 and set(begun) == {8}
    monkeypatch.setattr(Early, "begin", lambda *_: None)
    other = pipeline.train(config_of(server, tmp_path / "other", ahead=ahead, env=env), [])
    assert sum(missed) - 2 * evaluated == 6 * 32
    assert [{**row, "parity/policy": 0} for row in metrics(run)] == [{**row, "parity/policy": 0} for row in metrics(other)]


@pytest.mark.slow
def test_two_processes_ask_for_their_own_rows_and_practise_alike(server, tmp_path):
    settings = typed(tmp_path / "parts", tmp_path / "run", "rollout=vllm_server", f"rollout.urls=[{server.url}]",
                     "rollout.ahead=1", "launch=ddp", "launch.processes=2", "trainer.per_device_train_batch_size=16",
                     "routing.practice.share=.5", "routing.practice.environments=all", "evaluation.every=2")
    done = subprocess.run([sys.executable, "-m", "routed_rl.cli", "train", *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = metrics(tmp_path / "run")
    assert [row["rollout/staleness"] for row in rows[1:]] == [1] * 5
    assert all(row["practice/a/completions"] == 8 for row in rows)
