"""The verb `push` uploads a folder of a run to the Hugging Face hub, in one commit, with its model card."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, ModelCard, get_token

from routed_rl import console
from routed_rl.artifacts import ADAPTER_CONFIG, BASE, CARD, KEPT, ROBUSTIFIED, SEAL, RunFolder, read_json, require_seal
from routed_rl.errors import ConfigError, HubError, RunFolderError, command, reading
from routed_rl.export.hub import Files, commit, fault_of, refuse_public, require_token
from routed_rl.export.stock import discard
from routed_rl.pipeline.finishing import finishing
from routed_rl.pipeline.older import refuse_older
from routed_rl.report.card import DEPLOYED, POLICY, QUARANTINE, hub_name, without_paths

WITH_TOKEN = "export HF_TOKEN with a token that may write"
"""Words for a message: what to do if there is no token."""


def push(source: str, repo: str, what: str | None = None, base: str | None = None, *, private: bool = False,
         force: bool = False, dry_run: bool = False) -> None:
    """Upload a model of a run (`what` is deployed, policy or quarantine), or a folder that `discard`, `export` or `robustify`
    wrote, to the repository `repo`, which is made if it does not exist. `source` is the run or the folder. `base` names the model
    on the hub to which an adapter belongs. `private` makes a new repository private. `force` replaces files that the repository
    has already. `dry_run` shows files and card, says whether a token is missing, and sends nothing."""
    for option, name in (("REPO", repo), ("--base", base)):
        if name is not None and (fault := fault_of(name)):
            raise ConfigError(f"{option} {name!r:.120} is no name of a repository ({fault}); write OWNER/NAME")
    if not dry_run:
        require_token(None, WITH_TOKEN)
    with TemporaryDirectory(prefix="routed_rl-") as place:
        files = _files(_folder(source, what, Path(place) / "out"), base, source)
        _show(repo, files)
        if dry_run:
            missing = "" if get_token() else f"; to send it you need a token: run `hf auth login`, or {WITH_TOKEN}"
            console.say(f"dry run: nothing was sent{missing}")
        else:
            console.say(f"pushed: {_send(repo, files, private=private, force=force)}")


def _folder(source: str, what: str | None, place: Path) -> Path:
    """The folder to upload. If `source` is no run, this is `source` itself. For a run it is RUN/deployed, if that is wanted and
    exists; otherwise the model `what` (None: deployed) is written to `place`. RunFolderError if RUN/deployed is of an earlier
    step than the run's newest checkpoint."""
    if not RunFolder(source).config.exists():
        if not (Path(source) / CARD).exists():
            raise RunFolderError(f"{source} is neither a run nor a folder that `routed-rl discard`, `export` or `robustify` "
                                 "wrote; give one")
        if what is not None:
            raise ConfigError(f"--what {what} is for a run, and {source} is what left one; leave it out")
        return _sealed(Path(source))
    run = RunFolder.open(source)
    if what == POLICY:
        from routed_rl.export.models import merged_policy

        return merged_policy(run, place, finish=finishing(run, POLICY))
    if what == QUARANTINE:
        from routed_rl.export.adapter import export_quarantine

        kept = run.deployed if (run.deployed / KEPT).exists() else None
        return export_quarantine(run, place, kept=kept, finish=finishing(run, QUARANTINE, rest=kept is not None))
    if run.deployed.exists():
        refuse_older(run)
        return _sealed(run.deployed)
    return discard(run, place, finish=finishing(run, DEPLOYED))


def _sealed(folder: Path) -> Path:
    """Check that a folder is unchanged and return it. A folder without a card is refused, because nobody could tell what it
    is."""
    require_seal(folder)
    if not (folder / CARD).exists():
        raise RunFolderError(f"{folder} has no {CARD}, an older version wrote it; write it again with "
                             f"`{command('discard', 'RUN', '--out', 'DIR')}` and push DIR")
    return folder


def _files(folder: Path, base: str | None, source: str) -> Files:
    """The sealed files of a folder, or all of its files if its owner has removed the seal to edit the card. The seal itself is
    not uploaded, because the hub has hashes of its own. In the card and settings of an adapter, the path of its base model is
    replaced by the model's name on the hub, which is `base` if that is given, and in the record of a robustified model each path
    by its last name. ConfigError if no name of an adapter's base model is known."""
    seal = folder / SEAL
    names = read_json(seal) if seal.exists() else [
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    files: dict[str, Path | bytes] = {name: folder / name for name in sorted({CARD, *names}) if not name.startswith(".")}
    if ROBUSTIFIED in files:
        files[ROBUSTIFIED] = without_paths(folder / ROBUSTIFIED)
    if ADAPTER_CONFIG not in files:
        if base is not None:
            raise ConfigError(f"--base {base} is for an adapter, and {source} gives a whole model; leave it out")
        return files
    settings = read_json(folder / ADAPTER_CONFIG)
    if (name := base or hub_name(settings.get(BASE) or "")) is None:
        raise ConfigError(f"this adapter belongs to {settings.get(BASE)}, a folder of this machine, which nobody else can load; "
                          "push that first and give its name: --base OWNER/NAME, or push a model that `discard --merge` wrote")
    card = ModelCard((folder / CARD).read_text(encoding="utf-8"))
    card.data["base_model"], card.data["base_model_relation"] = name, "adapter"
    files[CARD], files[ADAPTER_CONFIG] = card.content.encode(), (json.dumps(settings | {BASE: name}, indent=2) + "\n").encode()
    return files


def _show(repo: str, files: Files) -> None:
    sizes = {name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in files.items()}
    rows = [[name, f"{size:,}"] for name, size in {**sizes, "all": sum(sizes.values())}.items()]
    console.table(f"to {repo}", ["file", "bytes"], rows)
    card = files[CARD]
    console.say(card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8"))


def _send(repo: str, files: Files, *, private: bool, force: bool) -> str:
    """Upload all files in one commit; returns the address of the repository. Existing files are replaced only with `force`, and
    stay in the history of the repository."""
    with reading(HubError, f"the hub did not take {repo}"):
        api = HfApi()
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        if private:
            refuse_public(api, repo, "--private")
        there = set(api.list_repo_files(repo)) - {".gitattributes"}
        if there and not force:
            raise ConfigError(f"{repo} has {len(there)} files already, such as {min(there)}; give another name, or replace them "
                              "with --force (its history keeps them)")
        console.say(f"sending {len(files)} files to {address}")
        commit(api, repo, files, sorted(there - files.keys()))
        return str(address)
