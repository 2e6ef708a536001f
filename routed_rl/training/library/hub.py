"""Uploads the deployed model of a library trainer to the Hugging Face hub, in one commit, with a model card. TRL's own method
would upload the folder of the run, with the checkpoints and the quarantine in them."""

from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, ModelCardData, get_token

from routed_rl import console
from routed_rl.artifacts import ADAPTER_CONFIG, CARD
from routed_rl.checkpoint import QUARANTINE
from routed_rl.errors import ConfigError, HubError, reading
from routed_rl.export.hub import commit, fault_of, refuse_public, require_token
from routed_rl.model.adapter import is_adapted
from routed_rl.training.library.model import path_of

STAY = (QUARANTINE, "training_args.bin")
"""Files of a saved model that are not uploaded: the quarantine, and TRL's settings, which may hold a token."""
OLD = ("*.safetensors", "*.bin", "*.index.json", ADAPTER_CONFIG)
"""Patterns of files in the repository that would be taken for a part of the new model; they are deleted in the same commit."""
PRIVATE = "args.hub_private_repo"
OF_CARD = ("model_name", "dataset_name", "tags", "license", "language")
ABOUT = ("`routed_rl` splits every change that reinforcement learning makes to the weights at a subspace of activations. Here "
         "the subspace has the directions of a persona that must not grow. What lies outside of it goes into the model, and what "
         "lies inside goes into a *quarantine*, which is not in this repository.")
UNKNOWN = ("The licence, unless it is named above: that of the base model and of the training data holds.",
           "What the model does outside of the environments that are named here.",
           "Whether the subspace holds the whole persona. What it leaves out is in the weights.")


def repository_of(args: Any) -> str:
    """Return the name of the repository to which a model is uploaded by TRL's arguments, with or without its owner."""
    return args.hub_model_id or Path(args.output_dir).absolute().name


def check_repository(args: Any) -> None:
    """Before a training with TRL's arguments `args`, ConfigError if `args.hub_private_repo` asks for a private repository, and
    the one to which `push_to_hub` would upload exists and is public. If the hub does not answer, this is said, because
    `push_to_hub` asks it again. Without a token nothing is asked."""
    if not args.hub_private_repo or not (token := args.hub_token or get_token()):
        return
    repo = repository_of(args)
    try:
        with reading(HubError, f"the hub did not say whether {repo} is public"):
            api = HfApi(token=token)
            repo = repo if "/" in repo else f"{api.whoami()['name']}/{repo}"
            if api.repo_exists(repo):
                refuse_public(api, repo, PRIVATE)
    except HubError as error:
        console.say(f"note: {error}; trainer.push_to_hub() asks it again")


def push(trainer: Any, message: str | None, *, blocking: bool, token: str | None, revision: str | None, **card: Any) -> Any:
    """Upload the deployed model of a library trainer, see `LibrarySeams.push_to_hub`. Everything that can be refused here is
    refused before anything is written or sent."""
    args = trainer.args
    if not blocking:
        raise ConfigError("trainer.push_to_hub(blocking=False) is not supported: the upload is waited for; leave blocking out")
    if wrong := [name for name in card if name not in OF_CARD]:
        raise ConfigError(f"trainer.push_to_hub has no argument {wrong[0]}; for the card it takes {', '.join(OF_CARD)}")
    if fault_of(repo := repository_of(args)):
        raise ConfigError(f"args.hub_model_id={repo!r:.120} is no name of a repository; set it to OWNER/NAME")
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = path_of(model)
    base = base if not fault_of(base) and not Path(base).exists() else None
    if base is None and is_adapted(model):
        raise ConfigError(f"trainer.push_to_hub: the LoRA belongs to {path_of(model) or 'a model without a name'}, which nobody "
                          "else can load; load the model by its name on the hub, or upload the merged model: "
                          "trainer.quarantine.remove(), then trainer.model.merge_and_unload().push_to_hub(NAME)")
    token = require_token(token or args.hub_token, "set args.hub_token")
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    with TemporaryDirectory(prefix="routed_rl-") as place:
        folder = Path(place) / "deployed"
        trainer.save_model(str(folder))
        (folder / CARD).write_text(card_of(trainer, repo.split("/")[-1], base, **card), encoding="utf-8")
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))
                 if path.is_file() and path.name not in STAY}
        with reading(HubError, f"the hub did not take {repo}"):
            api = HfApi(token=token)
            name = api.create_repo(repo, private=args.hub_private_repo, exist_ok=True).repo_id
            if args.hub_private_repo:
                refuse_public(api, name, PRIVATE)
            revision = revision or getattr(args, "hub_revision", None)
            there = api.list_repo_files(name, revision=revision)
            console.say(f"sending the deployed model, {len(files)} files, to {name}")
            old = [each for each in there if each not in files and any(fnmatch(each, pattern) for pattern in OLD)]
            return commit(api, name, files, old, message, revision)


def card_of(trainer: Any, name: str, base: str | None, *, model_name: str | None = None, dataset_name: Any = None,
            tags: Any = None, license: str | None = None, language: Any = None) -> str:
    """Return the model card of a trainer's deployed model. `name`: the name of the repository. `base`: the name of the base model
    on the hub, if it has one. The other arguments replace or add to what the card says."""
    mode = trainer.router.config.mode if trainer.router is not None else "none"
    adapted, more = is_adapted(trainer.model), [tags] if isinstance(tags, str) else [*(tags or [])]
    data = ModelCardData(base_model=base, library_name="peft" if adapted else "transformers", pipeline_tag="text-generation",
                         datasets=dataset_name, license=license, language=language,
                         tags=list(dict.fromkeys(["routed_rl", "trl", "reinforcement-learning", "deployed", *more])))
    blame = trainer.blame().sentence({})
    verdict = [f"The monitor halted the training: {found.sentence()}." for found in trainer.halted]
    if mode != "none":
        verdict.append(f"Who filled the quarantine: {blame or 'the run has not measured that'}.")
    names = ", ".join(f"`{each}`" for each in trainer.labelled.names)
    about = ABOUT if mode != "none" else "Nothing was routed (mode none), so there was no quarantine to discard."
    facts = [f"after step {trainer.state.global_step} of training by TRL, with routing mode `{mode}`",
             f"{'a LoRA on' if adapted else 'trained from'} {f'`{base}`' if base else 'a model that has no name on the hub'}",
             f"trained on {names}, with the learning rate {trainer.args.learning_rate:g} and seed {trainer.args.seed}"]
    lines = ["---", data.to_yaml().rstrip(), "---", "", f"# {model_name or name}: the deployed model", "", about, "",
             "## How it was trained", "", *(f"- {each}" for each in facts), "",
             *(["## Verdict", "", *(f"- {each}" for each in verdict), ""] if verdict else []),
             "## What is not known", "", *(f"- {each}" for each in UNKNOWN[:None if mode != "none" else 2]), ""]
    return "\n".join(lines)
