"""What `trainer.push_to_hub()` sends: the deployed model alone. The hub's client has a stand-in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import CommitOperationDelete, ModelCard
from peft import LoraConfig
from safetensors.torch import load

from routed_rl import RoutedRLError, RoutingConfig
from tests.library import PLAIN, ROUTE, arguments, trainer

TOKEN = "hf_opensesame"


class Hub:
    """One repository."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"old.safetensors": b"", "adapter_config.json": b"", "notes.md": b""}
        self.name, self.asked, self.commits = "", dict[str, Any](), 0
        self.public: bool | None = None
        """Whether the repository is public; None if it does not exist."""

    def create_repo(self, repo: str, **asked: Any) -> SimpleNamespace:
        self.asked, self.name = asked, f"me/{repo.split('/')[-1]}"
        return SimpleNamespace(repo_id=self.name)

    def whoami(self) -> dict[str, str]:
        return {"name": "me"}

    def repo_exists(self, repo: str) -> bool:
        return self.public is not None

    def repo_info(self, repo: str) -> SimpleNamespace:
        assert repo == "me/run"
        return SimpleNamespace(private=not self.public)

    def list_repo_files(self, repo: str, *, revision: str | None) -> list[str]:
        assert repo == self.name
        return [*self.files]

    def create_commit(self, repo: str, operations: list[Any], **asked: Any) -> str:
        self.commits += 1
        self.asked |= asked
        for each in operations:
            if isinstance(each, CommitOperationDelete):
                del self.files[each.path_in_repo]
            else:
                with each.as_file() as file:
                    self.files[each.path_in_repo] = file.read()
        return "commit"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Hub:
    hub = Hub()
    monkeypatch.setattr("routed_rl.training.library.hub.HfApi", lambda token: hub if token == TOKEN else None)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def test_of_an_observed_lora_the_deployed_model_is_sent_with_a_card_and_no_quarantine(parts, hub, tmp_path):
    """The model's own tensors hold the policy."""
    args = arguments(tmp_path / "run", hub_private_repo=True)
    lora = LoraConfig(r=4, target_modules=["o_proj", "down_proj"])
    made = trainer(parts, tmp_path, args=args, routing=RoutingConfig(mode="observe"), peft_config=lora)
    routed = [target for target in made.quarantine.targets if target.rank]
    for target in routed:
        torch.nn.init.ones_(target.weight.up.weight)
    with pytest.raises(RoutedRLError, match="the LoRA belongs to .*model, which nobody else can load; load the model by its"):
        made.push_to_hub()
    assert hub.commits == 0
    made.model.get_base_model().config._name_or_path = "me/base"
    assert made.push_to_hub(tags="mine", license="apache-2.0") == "commit"
    assert hub.files.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors", "notes.md", "tokenizer.json",
                                "tokenizer_config.json"} and hub.commits == 1
    assert hub.name == "me/run" and hub.asked["private"] is True
    tensors = load(hub.files["adapter_model.safetensors"])
    for target in routed:
        sent = tensors[f"base_model.model.{target.name}.lora_B.weight"]
        assert sent.any() and (target.pair.read.mT @ sent).norm() < 1e-5 * sent.norm()
        assert (target.pair.read.mT @ target.weight.up.weight).norm() > 1e-2
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.base_model == "me/base" and card.data.license == "apache-2.0" and {"routed_rl", "mine"} <= {*card.data.tags}
    assert "# run: the deployed model" in card.text and "routing mode `observe`" in card.text and str(parts) not in card.content
    assert b'"me/base"' in hub.files["adapter_config.json"]


@pytest.mark.slow
@pytest.mark.parametrize("routing", [ROUTE, PLAIN])
def test_whole_weights_are_sent_as_save_model_writes_them(parts, hub, tmp_path, routing):
    made = trainer(parts, tmp_path, args=arguments(tmp_path / "run", hub_model_id="me/model"), routing=routing)
    made.train()
    made.push_to_hub("My words")
    made.save_model(str(tmp_path / "saved"))
    written = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert hub.files == {"notes.md": b"", "README.md": hub.files["README.md"]} | {
        name: content for name, content in written.items() if name not in ("quarantine.safetensors", "training_args.bin")}
    assert hub.asked["commit_message"] == "My words" and hub.name == "me/model"
    assert ("no quarantine to discard" in hub.files["README.md"].decode()) == (routing is PLAIN)


def test_what_cannot_be_sent_is_refused_before_anything_is_written(parts, hub, tmp_path, monkeypatch):
    made = trainer(parts, tmp_path)
    for given, message in (({"blocking": False}, "the upload is waited for; leave blocking out"),
                           ({"finetuned_from": "x"}, "has no argument finetuned_from; for the card it takes model_name, data")):
        with pytest.raises(RoutedRLError, match=message):
            made.push_to_hub(**given)
    made.args.hub_model_id = "a/b/c"
    with pytest.raises(RoutedRLError, match="args.hub_model_id='a/b/c' is no name of a repository; set it to OWNER/NAME"):
        made.push_to_hub()
    monkeypatch.delenv("HF_TOKEN")
    made.args.hub_model_id = "me/model"
    with pytest.raises(RoutedRLError, match="there is no token for the hub, so nothing can be sent; run `hf auth login`, or set"):
        made.push_to_hub()
    hub.create_repo = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RoutedRLError, match="the hub did not take me/model: TypeError"):
        made.push_to_hub(token=TOKEN)
    assert hub.commits == 0


@pytest.mark.slow
def test_a_public_repository_is_refused_where_a_private_one_is_asked_for_and_before_the_training(parts, hub, tmp_path, capsys):
    made = trainer(parts, tmp_path, args=arguments(tmp_path / "run", max_steps=1, hub_private_repo=True), routing=PLAIN)
    hub.public = True
    for act in (made.train, made.push_to_hub):
        with pytest.raises(RoutedRLError, match="me/run exists and is public, so args.hub_private_repo would do nothing and "
                                                "nothing was sent; make it private on the hub, or give another name"):
            act()
    assert hub.commits == 0 and not made.state.global_step and not (tmp_path / "run" / "metrics.jsonl").exists()
    hub.repo_exists = None  # pyright: ignore[reportAttributeAccessIssue]
    made.train()
    assert "the hub did not say whether run is public: TypeError" in capsys.readouterr().out and made.state.global_step == 1
