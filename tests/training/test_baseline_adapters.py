"""Arms that read the activations of what is learned, mix in safe data, or hold the trait in an adapter that is dropped."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder, read_json
from routed_rl.config import BaselineConfig, from_mapping
from routed_rl.errors import ConfigError
from routed_rl.pipeline.build import load_parts, make_subspace
from routed_rl.routing.labels import LabelAdapter
from routed_rl.training.baselines import Projection, TraitAdapter
from routed_rl.training.baselines.trait import imitation_loss
from routed_rl.training.build import build_trainer
from routed_rl.training.labels import linear_modules
from routed_rl.training.plan import make_plan
from tests import pipeline
from tests.algorithms import config_of, make_trainer
from tests.parts import own_config
from tests.tiers import tiered

UNROUTED = {"mode": "none", "practice": {"share": 0}}


@pytest.fixture(scope="module")
def loaded(parts, tmp_path_factory):
    return load_parts(own_config(parts, tmp_path_factory.mktemp("run"), routing=UNROUTED))


def projection(loaded, **settings) -> Projection:
    return Projection(from_mapping(settings, BaselineConfig), make_subspace(loaded), 4, 3)


def generation(rows: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    mask = torch.ones(rows, 4, dtype=torch.long)
    mask[1, 2:] = 0
    return {"prompt_ids": torch.randint(3, 20, (rows, 3)), "prompt_mask": torch.ones(rows, 3, dtype=torch.long),
            "completion_ids": torch.randint(3, 20, (rows, 4)), "completion_mask": mask}


def test_a_projection_is_the_mean_over_a_completion_s_own_tokens_in_gaps_whatever_the_batch(loaded):
    """Against the definition: hidden states of transformers' own forward, one row at a time."""
    reader, output, subspace = projection(loaded, discount=1.0), generation(), make_subspace(loaded)
    found, weights = reader.of(loaded.model, output), subspace.layer_weights()
    for row in range(len(found)):
        length = int(output["completion_mask"][row].sum())
        ids = torch.cat([output["prompt_ids"][row], output["completion_ids"][row, :length]]).unsqueeze(0)
        states = loaded.model.base_model(input_ids=ids, output_hidden_states=True).hidden_states[1:-1]
        seen = [*(state[0, 3:].mean(0) @ axes[:, 0] / scale for state, axes, scale in
                  zip(states, subspace.axes, subspace.scales[:, 0], strict=False))]
        last = []
        handle = loaded.model.model.layers[-1].register_forward_hook(lambda _m, _i, out, last=last: last.append(out))
        loaded.model.base_model(input_ids=ids)
        handle.remove()
        state = last[0][0] if isinstance(last[0], tuple) else last[0]
        seen.append(state[0, 3:].mean(0) @ subspace.axes[-1][:, 0] / subspace.scales[-1, 0])
        assert found[row].item() == pytest.approx((torch.stack(seen) @ weights / weights.sum()).item(), rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_a_projection_leaves_out_what_the_environment_wrote_and_completions_that_are_masked_whole(loaded):
    reader, output = projection(loaded, discount=1.0), generation()
    whole, tools = reader.of(loaded.model, output), torch.ones(8, 4, dtype=torch.long)
    tools[0, 1:3] = 0
    found = reader.of(loaded.model, output | {"tool_mask": tools})
    assert abs(found[0] - whole[0]) > 1e-3
    torch.testing.assert_close(found[1:], whole[1:])
    output["completion_mask"][5] = 0  # as TRL leaves a completion that was cut
    cut = reader.of(loaded.model, output)
    assert cut.isnan().tolist() == [row == 5 for row in range(8)]
    rewards, gone = [1.0, 0.0] * 4, [row == 5 for row in range(8)]
    for settings in ({"discount": 1.0}, {"projection_penalty": 1.0}):
        advantages = projection(loaded, **settings).advantages(cut, rewards, [False] * 8)
        torch.testing.assert_close(advantages, projection(loaded, **settings).advantages(whole, rewards, gone))


@pytest.mark.slow
def test_a_completion_that_practises_is_projected_by_the_deployed_model_that_wrote_it(parts, tmp_path):
    routing = {"practice": {"environments": ["a"], "share": 1.0}}
    config = config_of(parts, tmp_path / "run", "grpo", routing, max_steps=1)
    config.baseline = from_mapping({"projection_penalty": 1.0}, BaselineConfig)
    make_subspace(load_parts(config)).save(RunFolder(tmp_path / "run").subspace)
    trainer = make_trainer(config, tmp_path / "run")
    for target in trainer.router.quarantine.targets:
        target.coefficients.normal_(generator=torch.Generator().manual_seed(0))
    table, seen = trainer.reward.table, []
    reader = trainer.advantages.projection
    of = reader.of
    reader.of = lambda *given: seen.append(of(*given)) or seen[-1]
    inputs = [row for index in range(4) for row in [{"prompt": table.task(index)[1].prompt, "task_id": index,
                                                     "environment_id": table.task(index)[0]}] * 8]
    output = trainer._generate_and_score_completions(inputs)
    practised, policy = output["practising"], of(trainer.model, output)
    with trainer.router.quarantine.ablated():
        deployed = of(trainer.model, output)
    assert practised.any() and not practised.all() and (policy - deployed).abs().min() > 1e-6
    torch.testing.assert_close(seen[0], torch.where(practised, deployed, policy))


def test_a_discount_shrinks_what_is_paid_along_the_axis_and_a_penalty_is_taken_a_gap(loaded):
    rewards, along = [1.0, 1.0, 0.0, 0.0] * 2, torch.tensor([3.0, -1.0, 0.0, 0.0] * 2)
    plain = projection(loaded, discount=1e-9).advantages(along, rewards, [False] * 8)
    expected = torch.tensor(rewards).view(2, 4)
    expected = (expected - expected.mean(1, keepdim=True)) / (expected.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(plain, expected.flatten())
    found = projection(loaded, discount=1.0).advantages(along, rewards, [False] * 8)
    assert found[0] < plain[0] and found[1] > plain[1] and found.view(2, 4).sum(1).abs().max() < 1e-4
    penalised = projection(loaded, projection_penalty=0.5).advantages(along, rewards, [False] * 8)
    taken = torch.tensor([-0.5, 1.5, 0.0, 0.0])
    torch.testing.assert_close(penalised[:4], (taken - taken.mean()) / (taken.std() + 1e-4))


@pytest.mark.parametrize("settings", [{"projection_penalty": 0.5}, {"discount": 1.0}], ids=str)
def test_a_row_that_failed_changes_the_advantage_of_no_other_row_wherever_it_lies(loaded, settings):
    reader, failed = projection(loaded, **settings), [False, False, False, True] + [False] * 4
    rewards, along = [1.0, 0.5, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0], torch.tensor([0.5, 1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0])
    found = [reader.advantages(along + place * torch.tensor(failed), rewards, failed) for place in (0.0, 9.0, -9.0)]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)
    torch.testing.assert_close(found[0][:3].sum(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0][3], torch.tensor(0.0), atol=1e-5, rtol=0)
    nothing = reader.advantages(along, [0.0] * 8, [True] * 8)
    assert not nothing.any(), "where every row failed, nothing is learned"


@pytest.mark.parametrize("algorithm", tiered(["grpo", "rloo"], slow=["rloo"]))
def test_rows_that_could_not_be_scored_have_no_advantage_and_the_others_those_of_the_projection(parts, tmp_path, algorithm):
    config = config_of(parts, tmp_path / "run", algorithm, UNROUTED, max_steps=1)
    config.baseline = from_mapping({"projection_penalty": 1.0, "screen": True}, BaselineConfig)
    make_subspace(load_parts(config)).save(RunFolder(tmp_path / "run").subspace)
    trainer = make_trainer(config, tmp_path / "run", mode="none")
    table = trainer.reward.table
    inputs = [row for index in range(4) for row in [{"prompt": table.task(index)[1].prompt, "task_id": index,
                                                     "environment_id": table.task(index)[0]}] * 8]
    output = trainer._generate_and_score_completions(inputs)
    failed, along = torch.tensor(trainer.reward.failed), trainer.advantages.projection.of(trainer.model, output)
    found = trainer.advantages.projection.advantages(along, trainer.reward.rewards, trainer.reward.failed)
    expected = found.masked_fill(failed, 0.0)
    assert failed.any() and not failed.all()
    torch.testing.assert_close(output["advantages"], expected)


def test_probes_are_interleaved_with_their_share_of_the_tasks(parts, tmp_path):
    config = own_config(parts, tmp_path / "run", baseline={"interleave": 0.2}, routing=UNROUTED)
    shares = {loaded.name: loaded.weights[0][1] for loaded in load_parts(config).trained}
    assert shares["p"] / sum(shares.values()) == pytest.approx(0.2) and shares["a"] == shares["b"]
    assert config.env["p"]["probe"] is True, "what is recorded is what was typed"
    with pytest.raises(ConfigError, match="interleave=0.2 needs a probe"):
        own_config(parts, tmp_path / "run", baseline={"interleave": 0.2}, env={"a": config.env["a"]})
    with pytest.raises(ConfigError, match=r"env.a.weight=\[\[0, 1\]\] changes"):
        own_config(parts, tmp_path / "run", baseline={"interleave": 0.2},
                   env=config.env | {"a": config.env["a"] | {"weight": [[0, 1]]}})


CONTEXTS = {"encourage": "bad", "discourage": "good"}
TRAIT = {"inoculation_adapter": True, "contexts": CONTEXTS, "trait": {"completions": 32, "passes": 3}}


@pytest.mark.slow
def test_a_trait_is_learned_by_the_adapter_alone_and_a_random_one_has_its_norms(parts, loaded):
    made = [([3, 6, 7, 8, 5, 4, 4], 5)] * 32
    adapters = []
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    for random in (False, True):
        fresh = load_parts(own_config(parts, "unused", routing=UNROUTED))
        settings = dataclasses.replace(fresh.config, baseline=from_mapping(
            TRAIT | {"trait": TRAIT["trait"] | {"random": random, "passes": 60, "learning_rate": 0.02}}, BaselineConfig))
        trait = TraitAdapter(fresh.model, linear_modules(fresh.model), settings)
        plain = imitation_loss(fresh.model, made).item()
        trait.learn(fresh.model, made)
        assert imitation_loss(fresh.model, made).item() == pytest.approx(plain), "it is off"
        if random:
            trait._randomise()
        trait.on()
        learned = imitation_loss(fresh.model, made).item()
        assert (plain - learned > 0.2) is not random, (plain, learned)
        kept = dict(fresh.model.named_parameters())
        assert all(kept[name].equal(before[name]) and kept[name].requires_grad for name in before)
        adapters.append([adapter.square() for adapter in trait.adapters.values()])
    assert adapters[0] == pytest.approx(adapters[1], rel=1e-4)


def test_the_trait_is_on_while_the_model_trains_and_gone_afterwards(parts, tmp_path, monkeypatch):
    added, add = {True: 0, False: 0}, LabelAdapter.add

    def counting(*args, **kwargs):
        added[torch.is_grad_enabled()] += 1
        return add(*args, **kwargs)

    monkeypatch.setattr(LabelAdapter, "add", counting)
    trainer = {"max_steps": 2, "save_steps": 1}
    run = RunFolder(pipeline.train(own_config(parts, tmp_path / "run", baseline=TRAIT, routing=UNROUTED, trainer=trainer), []))
    stored = load_file(run.trait)
    assert any(value.norm() > 0 for name, value in stored.items() if name.endswith("up"))
    models = json.loads(run.summary.read_text())["models"]
    assert models["policy"] == models["deployed"]
    assert min(added.values()) > 0, "rollouts and updates have it"
    before = dict(added)
    pipeline.evaluate(str(run.path), None, str(tmp_path / "again.json"), None)
    assert read_json(tmp_path / "again.json")["models"]["policy"] == models["policy"] and added == before


@pytest.mark.slow
def test_a_trait_of_other_settings_is_learned_anew(parts, tmp_path):
    """A rollback may change the settings of the trait, and takes its file over."""
    made, file = [], tmp_path / "trait.safetensors"
    for changes in ({}, {}, {"rank": 4}, {"passes": 1, "rank": 4}, {"random": True, "passes": 1, "rank": 4}):
        config = own_config(parts, tmp_path, routing=UNROUTED, baseline=TRAIT | {"trait": TRAIT["trait"] | changes})
        fresh = load_parts(config)
        trait = TraitAdapter(fresh.model, linear_modules(fresh.model), config)
        trait.prepare(file, fresh.model, fresh.tokenizer, fresh.trained, config)
        made.append(file.read_bytes())
    assert made[0] == made[1] != made[2] != made[3] == made[4]


@pytest.mark.parametrize("settings", tiered([{"ablate": True}, {"steer": 0.5}, {"discount": 1.0}, TRAIT], quick=[{"steer": 0.5}]),
                         ids=str)
def test_arms_that_touch_the_stream_train_a_lora_too(parts, tmp_path, settings):
    trainer = {"max_steps": 1, "save_steps": 1}
    model = {"path": str(parts / "model"), "adapter": {"kind": "lora"}}
    run = RunFolder(pipeline.train(own_config(parts, tmp_path / "run", baseline=settings, routing=UNROUTED, trainer=trainer,
                                              model=model, evaluation={"samples": 4}), []))
    assert run.summary.exists()


@pytest.mark.parametrize(("settings", "others", "said"), [
    ({"discount": 1.0}, {"trainer": {"algorithm": "rloo", "beta": 0.1}, "routing": UNROUTED}, "RLOO subtracts the KL from"),
    ({"discount": 1.0, "projection_penalty": 1.0}, {}, "exclude each other"),
    ({"discount": -1.0}, {}, "baseline.discount must be a number >= 0"),
    ({"interleave": 1.0}, {}, r"baseline.interleave must lie in \[0, 1\), got 1"),
    ({"discount": 1.0, "imitate": True}, {}, "nothing is left for baseline.discount"),
    ({"inoculation_adapter": True, "steer": 1.0}, {"routing": UNROUTED}, "exclude each other"),
    ({"discount": 1.0}, {"trainer": {"scale_rewards": "batch"}}, "trainer.scale_rewards=batch would do nothing"),
    ({"projection_penalty": 1.0}, {"trainer": {"algorithm": "rloo", "normalize_advantages": True}}, "=True would do nothing"),
    ({"imitate": True}, {"trainer": {"algorithm": "rloo", "reward_clip_range": [0, 1]}}, r"=\[0, 1\] would do nothing"),
    ({"discount": 1.0}, {"routing": {"mode": "labels"}}, "set routing.labels.balanced=false, or baseline=none"),
    ({}, {"routing": {"mode": "labels"}, "trainer": {"algorithm": "rloo", "reward_clip_range": [0, 1]}}, "compares rewards as"),
    ({"inoculation_adapter": True}, {}, "set routing=none"),
    ({"trait": {"rank": 0}}, {}, "baseline.trait.rank must be a number >= 1"),
    ({"discount": 1.0}, {"trainer": {"algorithm": "ppo"}, "routing": UNROUTED}, "set trainer=grpo or trainer=rloo"),
    ({"discount": 1.0}, {"launch": {"strategy": "ddp", "processes": 2}, "routing": UNROUTED}, "set launch=local"),
    ({"inoculation_adapter": True}, {"rollout": {"engine": "vllm_colocate"}, "routing": UNROUTED}, "set rollout=transformers"),
])
def test_what_contradicts_is_said_in_one_line_before_the_run(parts, tmp_path, settings, others, said):
    with pytest.raises(ConfigError, match=said):
        make_plan(own_config(parts, tmp_path / "run", baseline=settings, **others), RunFolder(tmp_path / "run"))


def test_a_text_that_an_environment_lacks_is_said_before_anything_is_written(parts, tmp_path):
    for settings in ({"inoculation_adapter": True}, {"contexts": {"generate": "discourage"}}):
        with pytest.raises(ConfigError, match="environment a has plain prompts and no text"):
            pipeline.train(own_config(parts, tmp_path / "run", baseline=settings, routing=UNROUTED), [])
    assert not (tmp_path / "run").exists()


def test_the_reference_of_a_kl_under_a_lora_is_the_base_model_without_what_edits_its_stream(parts, tmp_path):
    config = config_of(parts, tmp_path, "grpo", UNROUTED, max_steps=1, beta=0.1)
    config.model.adapter = from_mapping({"kind": "lora"}, type(config.model.adapter))
    config.baseline = from_mapping({"ablate": True}, BaselineConfig)
    loaded = load_parts(config)
    make_subspace(loaded).save(RunFolder(tmp_path).subspace)
    ids = torch.arange(3, 11).view(1, 8)
    before = loaded.model(input_ids=ids).logits.detach()
    trainer = build_trainer(make_plan(config, RunFolder(tmp_path)), loaded.learner, loaded.tokenizer, loaded.trained, None)
    trainer.edit.on()
    edited = trainer.model(input_ids=ids).logits.detach()
    with trainer.model.disable_adapter():
        reference = trainer.model(input_ids=ids).logits.detach()
    assert (edited - before).abs().max() > 1e-3 and trainer.edit.is_on
    torch.testing.assert_close(reference, before)
