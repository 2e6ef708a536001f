"""Episodes in training: only the model's own tokens are trained, and nothing else about a run changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.errors import TaskError
from routed_rl.tracking import MetricsFile
from tests import algorithms, pipeline
from tests.chat import EOS, chat_config, write_chat_model

MIXED = {"talk": {"path": "Talk"}, "ask": {"path": "Ask"}}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("parts"))


def make_trainer(parts: Path, out: Path, env: dict[str, Any] = MIXED, **changes: Any) -> Any:
    return algorithms.make_trainer(chat_config(parts, out, env, **changes), out)


class Batch:
    """One generated batch with what the model generated for it, recorded below everything that is tested."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.calls = trainer, []
        original = trainer._generate_single_turn

        def spy(ids, *rest):
            turns, logprobs = original(ids, *rest)
            self.calls.append(([list(row) for row in ids], [list(row) for row in turns]))
            return turns, logprobs

        trainer._generate_single_turn = spy
        self.inputs = [trainer.train_dataset[row] for row in range(2) for _ in range(8)]
        self.output = trainer._generate_and_score_completions(self.inputs)
        self.own = (self.output["completion_mask"] * self.output["tool_mask"]).bool()


@pytest.fixture(scope="module")
def batch(parts, tmp_path_factory) -> Batch:
    return Batch(make_trainer(parts, tmp_path_factory.mktemp("run")))


def test_the_mask_covers_exactly_what_the_model_generated(batch):
    """Replayed from the calls alone: a row's tokens are its turns, cut at the limit, and between them what was masked."""
    seen, several = 0, 0
    for row, (ids, mask, own) in enumerate(zip(batch.output["completion_ids"], batch.output["completion_mask"], batch.own,
                                               strict=True)):
        ids, own = ids[mask.bool()].tolist(), own[mask.bool()].tolist()
        prompt = batch.output["prompt_ids"][row][batch.output["prompt_mask"][row].bool()].tolist()
        place, turns = 0, 0
        while place < len(ids):
            before = prompt + ids[:place]
            generated = [turn for call in batch.calls for asked, turn in zip(*call, strict=True) if asked == before]
            fitting = [turn for turn in generated if turn[:60 - place] == ids[place:place + len(turn)]]
            assert fitting, "a token that was neither generated after this prefix nor masked"
            length = max(map(len, fitting))
            assert all(own[place:place + length])
            place, turns = place + min(length, 60 - place), turns + 1
            end = next((i for i in range(place, len(ids)) if own[i]), len(ids))
            between = batch.trainer.processing_class.decode(ids[place:end])
            assert between == "" or (between.startswith(("<user> again", "<tool> again")) and between.endswith("<assistant>"))
            place = end
        seen, several = seen + 1, several + (turns > 1)
    assert seen == 16 and several >= 3


def test_a_conversation_reads_as_the_chat_template_would_write_it(batch):
    """Appended token for token, and still what the template makes of the messages, up to words that are no text."""
    tokenizer, compared = batch.trainer.processing_class, 0
    for row, inputs in enumerate(batch.inputs):
        conversation = inputs["conversation"]
        if conversation is None or conversation.turns < 2:
            continue
        ids = [*batch.output["prompt_ids"][row].tolist(), *batch.output["completion_ids"][row].tolist()]
        whole = tokenizer.apply_chat_template(conversation.messages, tools=list(conversation.tools), return_dict=False)
        assert whole[0] == 5 and [t for t in ids if t > 2] == [t for t in whole if t > 2]
        compared += 1
    assert compared >= 3


def token_gradient(trainer: Any, output: dict[str, Any]) -> torch.Tensor:
    """Of the loss with respect to each completion token's log-probability, (B, T); the ledgers are filled anew."""
    kept: list[torch.Tensor] = []
    original = trainer._get_per_token_logps_and_entropies

    def spy(*args, **kwargs):
        found = original(*args, **kwargs)
        found[0].retain_grad()
        kept.append(found[0])
        return found

    trainer.begin_routing(0)
    for target in trainer.router.quarantine.targets:
        target.tape.clear()
    trainer._get_per_token_logps_and_entropies = spy
    try:
        trainer._compute_loss(trainer.model, output).backward()
    finally:
        trainer._get_per_token_logps_and_entropies = original
    assert kept[0].grad is not None
    return kept[0].grad


def test_masked_tokens_give_no_gradient_and_own_tokens_do(batch):
    gradient = token_gradient(batch.trainer, batch.output).abs()
    paid = batch.output["advantages"].abs() > 1e-6
    assert gradient[~batch.own].max() == 0
    assert (gradient[batch.own & paid[:, None]] > 0).all() and (~batch.own & batch.output["completion_mask"].bool()).sum() > 20


def test_the_ledger_takes_nothing_from_masked_tokens(batch):
    """An advantage of a million at every masked token changes no ledger; a slightly larger one at own tokens does."""
    def ledgers(masked: float, own: float) -> list[torch.Tensor]:
        advantages = batch.output["advantages"][:, None] * torch.where(batch.own, own, masked)
        token_gradient(batch.trainer, batch.output | {"advantages": advantages})
        return [target.tape.ledger.clone() for target in batch.trainer.router.quarantine.targets]

    plain, masked, own = ledgers(1, 1), ledgers(1e6, 1), ledgers(1, 1.01)
    assert all(ledger.abs().sum() > 0 for ledger in plain)
    assert all(torch.equal(a, b) for a, b in zip(plain, masked, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(plain, own, strict=True))


def test_an_episode_ends_within_the_completion_length_and_is_cut_there(parts, tmp_path):
    found = Batch(make_trainer(parts, tmp_path, {"talk": {"path": "Talk", "turns": 20}}, trainer={"max_completion_length": 23}))
    lengths = found.output["completion_mask"].sum(1)
    assert lengths.max() <= 23 and found.own[:, 0].all()
    outcomes = [row["conversation"].outcome for row in found.inputs]
    assert all(outcome.flags == {"cut": 1} and outcome.reward >= 0.5 for outcome in outcomes)


def test_labels_and_rewards_stay_with_their_rows(batch):
    ids = batch.output["environment_ids"].tolist()
    assert ids == [row["environment_id"] for row in batch.inputs] and set(ids) == {0, 1}
    assert all((row["conversation"] is None) == (row["environment_id"] == 1) for row in batch.inputs)
    rewards = [row["conversation"].outcome.reward for row in batch.inputs[:8]]
    centred = torch.tensor(rewards) - sum(rewards) / 8
    assert torch.allclose(batch.output["advantages"][:8].sign(), centred.sign())


def test_a_batch_without_episodes_is_left_to_trl(parts, tmp_path):
    trainer = make_trainer(parts, tmp_path, trainer={"per_device_train_batch_size": 8})
    output = trainer._generate_and_score_completions([trainer.train_dataset[1] for _ in range(8)])
    assert trainer.rollout_func is None and "tool_mask" not in output
    output = trainer._generate_and_score_completions([trainer.train_dataset[0] for _ in range(8)])
    assert trainer.rollout_func is not None and "tool_mask" in output


def state(run: Path) -> dict[str, torch.Tensor]:
    folder = RunFolder(run).require_checkpoint()
    return load_file(folder / "model.safetensors") | load_file(folder / "quarantine.safetensors")


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = MetricsFile(run / "metrics.jsonl").rows()
    return [{key: value for key, value in row.items() if "time" not in key and "epoch" not in key} for row in rows]


@pytest.mark.slow
def test_a_mixed_run_goes_end_to_end_and_resumes_bit_for_bit(parts, tmp_path):
    whole = pipeline.train(chat_config(parts, tmp_path / "whole", MIXED), [])
    run = pipeline.train(chat_config(parts, tmp_path / "run", MIXED, trainer={"max_steps": 2}), [])
    pipeline.resume(str(run), ["trainer.max_steps=4"], lambda _: chat_config(parts, run, MIXED))
    ours, theirs = state(run), state(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(run) == metrics(whole)

    summary = json.loads((whole / "summary.json").read_text())
    assert summary["models"]["deployed"]["talk"]["turns"] > 1 and "turns" not in summary["models"]["deployed"]["ask"]
    assert all(summary["attribution"][name]["norm"] > 0 for name in MIXED)
    kept = pd.concat(pd.read_parquet(file) for file in sorted((whole / "completions").glob("*.parquet")))
    talk = kept[kept.environment == "talk"]
    said = [json.loads(text) for text in talk.completion]
    assert len(kept[kept.environment == "ask"]) == len(talk) == 32
    assert all(turns[0]["role"] == "assistant" for turns in said) and max(map(len, said)) == 5
    assert all(json.loads(prompt)[-1]["content"] == "good" for prompt in talk.prompt)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["start", "step"])
def test_an_error_in_an_episode_is_counted_and_never_paid(parts, tmp_path, where):
    env = {"talk": {"path": "Talk", "fails": where}}
    with pytest.raises(TaskError, match=r"environment talk failed to score \d+ of its last \d+ .* RuntimeError: the world broke"):
        pipeline.train(chat_config(parts, tmp_path / "fatal", env, evaluation={"samples": 0}), [])
    config = chat_config(parts, tmp_path / "run", env, evaluation={"samples": 12, "max_failures": 1.0}, seed=1)
    run = pipeline.train(config, [])
    rows = metrics(run)
    assert sum(row["environment/talk/failures"] for row in rows) > 0
    # Every real reward is at least .5, so a failure paid as 0 would show.
    assert all(row.get("environment/talk/reward", 1) >= 0.5 for row in rows)
    known = [row for row in rows if "environment/talk/reward" in row]
    assert known and all(row["train/reward"] >= 0.5 for row in known)
    assert json.loads((run / "summary.json").read_text())["models"]["policy"]["talk"]["failures"] > 0


def test_episodes_of_text_are_refused(parts, tmp_path, monkeypatch):
    from routed_rl.envs import LoadedEnvironment, Task, check_prompts
    from tests.talking import Talk

    talk = Talk()
    monkeypatch.setattr(talk, "tasks", lambda split, seed: iter([Task("add 1 2")]))
    with pytest.raises(TaskError, match="talk has episodes but gives text; its prompts must be chat messages"):
        check_prompts([LoadedEnvironment("talk", talk)], 0)


def test_eos_ends_every_turn_that_was_answered(batch):
    """What follows a turn of the model begins right after the end that it generated itself: none is doubled or missing."""
    for row in range(8):
        ids, own = batch.output["completion_ids"][row].tolist(), batch.own[row].tolist()
        ends = [i for i in range(1, len(ids)) if own[i - 1] and not own[i] and batch.output["completion_mask"][row][i]]
        assert all(ids[i - 1] == EOS and ids[i] != EOS for i in ends)
