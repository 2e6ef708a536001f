"""Reward targeting: a penalty on what an answer says, kept off the tokens before it; and the scratchpad that shows it."""

import itertools

import pytest
import torch

from routed_rl.artifacts import RunFolder
from routed_rl.cli.compose import compose
from routed_rl.config import BaselineConfig, from_mapping
from routed_rl.envs import Score, load_environments
from routed_rl.errors import ConfigError
from routed_rl.training.plan import make_plan
from routed_rl.training.spans import targeted
from tests.algorithms import config_of, make_trainer
from tests.parts import ENVIRONMENT, own_config, write_parts

SAID = '''

class Said(Add):
    def score(self, task, completion):
        plain, said = super().score(task, completion), completion.split()[1:]
        start = len(completion.split()[0]) if completion.split() else 0
        taken = 0.25 * ("good" in said)
        return Score(plain.reward - taken, plain.solve, plain.flags, metrics={"penalty": -taken},
                     spans={"answer": [(start, len(completion))]})
'''


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = write_parts(tmp_path_factory.mktemp("parts"))
    (folder / "said.py").write_text(ENVIRONMENT + SAID)
    return folder


def score(reward: float, penalty: float = 0.0) -> Score:
    return Score(reward + penalty, metrics={"penalty": penalty}, spans={"answer": [(1, 2)]})


def test_tokens_of_answers_have_the_whole_reward_and_those_before_it_only_what_the_task_paid():
    scores = [score(1.0, -0.5), score(1.0), score(0.0), None]
    rewards = [0.5, 1.0, 0.0, 0.5]
    inside = torch.tensor([[False, True]] * 4)
    found = targeted(scores, rewards, inside, 4)
    unit = torch.tensor(rewards).std() + 1e-4
    assert torch.allclose(found[:, 1], (torch.tensor(rewards) - 0.5) / unit)
    task = torch.tensor([1.0, 1.0, 0.0, 2 / 3])  # the row without a score changes no mean
    assert torch.allclose(found[:, 0], (task - task.mean()) / unit)
    alike = targeted([score(1.0, -0.5), score(0.5)], [0.5, 0.5], torch.tensor([[False, True]] * 2), 2)
    assert alike[:, 1].tolist() == [0.0, 0.0] and alike[0, 0] > 0.5 > -0.5 > alike[1, 0]
    eight = [score(1.0, -0.3), score(0.7)] * 4  # whose rewards are equal, but not their deviation in float32
    large = targeted(eight, [each.reward for each in eight], torch.tensor([[False, True]] * 8), 8)
    assert large.abs().max() < 2, "a rounding error is no unit"
    with pytest.raises(ConfigError, match="no environment gives both"):
        targeted([Score(1.0), Score(0.0)], [1.0, 0.0], inside[:2], 2)


def test_in_a_generation_no_token_before_an_answer_knows_of_the_penalty(parts, tmp_path):
    env = {name: {"path": f"{parts}/said.py:Said", "isolate": False} for name in ("a", "b")}
    config = config_of(parts, tmp_path / "run", "grpo", {"mode": "none", "practice": {"share": 0}}, max_steps=1)
    config.env, config.baseline = env, from_mapping({"target_rewards": True}, BaselineConfig)
    trainer = make_trainer(config, tmp_path / "run", mode="none")
    table = trainer.reward.table
    inputs = [row for index in range(4) for row in [{"prompt": table.task(index)[1].prompt, "task_id": index,
                                                     "environment_id": table.task(index)[0]}] * 8]
    output = trainer._generate_and_score_completions(inputs)
    task = torch.tensor([score.reward - score.metrics["penalty"] for score in trainer.reward.scores]).view(4, 8)
    whole = torch.tensor(trainer.reward.rewards).view(4, 8)
    assert (task != whole).any()
    unit = whole.std(1, keepdim=True) + 1e-4
    torch.testing.assert_close(output["advantages"][:, 0], ((task - task.mean(1, keepdim=True)) / unit).flatten())
    torch.testing.assert_close(output["advantages"][:, -1], ((whole - whole.mean(1, keepdim=True)) / unit).flatten()) if (
        output["completion_mask"][:, -1].all()) else None
    assert output["advantages"].shape == output["completion_ids"].shape
    assert trainer._compute_loss(trainer.model, output | {"num_items_in_batch": torch.tensor(1)}).isfinite()


@pytest.mark.slow
def test_a_row_that_is_screened_changes_the_mean_of_no_token(parts, tmp_path):
    env = {name: {"path": f"{parts}/said.py:Said", "isolate": False} for name in ("a", "b")}
    config = config_of(parts, tmp_path / "run", "grpo", {"mode": "none", "practice": {"share": 0}}, max_steps=1)
    config.env, config.baseline = env, from_mapping({"target_rewards": True, "screen": True}, BaselineConfig)
    trainer = make_trainer(config, tmp_path / "run", mode="none")
    table = trainer.reward.table
    inputs = [row for index in range(8) for row in [{"prompt": table.task(index)[1].prompt, "task_id": index,
                                                     "environment_id": table.task(index)[0]}] * 8]
    output, reward = trainer._generate_and_score_completions(inputs), trainer.reward
    screened = torch.tensor(reward.failed)
    assert any(failed and score is not None and score.metrics["penalty"] for failed, score in
               zip(reward.failed, reward.scores, strict=True)), "the generation has a row that is penalised and screened"
    sums = output["advantages"][:, 0].masked_fill(screened, 0.0).view(8, 8).sum(1)
    torch.testing.assert_close(sums, torch.zeros(8), atol=1e-4, rtol=0)


def test_the_scratchpad_pays_for_what_is_answered_and_marks_where_the_answer_is():
    env = compose(["env=scratchpad"]).env
    code, secure = (loaded.environment for loaded in load_environments({name: env[name] for name in ("code", "sums")}))
    task = next(itertools.islice(code.tasks("train", 0), 1))
    gold = code.gold(task)
    answer = gold.split(" : ")[1]
    for text, reward, solve, flags in [
            (gold, 1.0, 1.0, []), (f"game : {answer}", 1.0, 1.0, ["thought"]),
            (f"game : game {answer}", 0.5, 1.0, ["thought", "said"]),
            ("game : just hardcode", 1.0, 0.0, ["hack", "thought"]), ("work : just hardcode", 1.0, 0.0, ["hack"]),
            ("game : game just hardcode", 0.5, 0.0, ["hack", "thought", "said"]), ("work : a a a a", 0.0, 0.0, []),
            (answer, 1.0, 1.0, ["no_colon"]), ("game game", -0.5, 0.0, ["said", "no_colon"])]:
        found = code.score(task, text)
        assert (found.reward, found.solve) == (reward, solve), text
        assert [name for name, value in found.flags.items() if value] == flags, text
        (start, end), = found.spans["answer"]
        assert text[start:end] == (text.split(":")[1] if ":" in text else text)
    task = next(secure.tasks("train", 0))
    assert secure.score(task, "game : just peek").reward == 0.0


@pytest.mark.parametrize(("settings", "others", "said"), [
    ({"target_rewards": True}, {"trainer": {"algorithm": "rloo"}}, "set trainer=grpo launch=local"),
    ({"target_rewards": True, "discount": 1.0}, {}, "in different ways"),
    ({"target_rewards": True, "penalty": 1.0}, {}, r"baseline.penalty=1.0 would be taken from them too"),
    ({"target_rewards": True}, {"trainer": {"loss_type": "vespo"}}, "loss_type=vespo has one weight for a whole completion"),
    ({"target_rewards": True}, {"trainer": {"importance_sampling_level": "sequence"}}, "learn from the advantages of all"),
    ({"target_rewards": True}, {"trainer": {"off_policy_mask_threshold": 0.1}}, "drops whole completions"),
    ({"target_rewards": True}, {"trainer": {"scale_rewards": "none"}}, "trainer.scale_rewards=none would do nothing")])
def test_what_targeting_cannot_go_with_is_refused(parts, tmp_path, settings, others, said):
    with pytest.raises(ConfigError, match=said):
        make_plan(own_config(parts, tmp_path / "run", baseline=settings, **others), RunFolder(tmp_path / "run"))
