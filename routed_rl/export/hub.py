"""The Hugging Face hub: the names of repositories, the token, and the one commit in which files are sent."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from routed_rl.config.references import remember
from routed_rl.errors import ConfigError

MESSAGE = "Upload by routed_rl"
Files = Mapping[str, Path | bytes]
"""Maps the name of a file in the repository to the file that is sent, or to its content."""


def fault_of(name: str) -> str:
    """Why `name` cannot be the name of a repository, in the words of the hub's client; "" if it can."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return " ".join(str(error).split())[:120]
    return ""


def require_token(given: str | None, way_out: str) -> str:
    """Return the token `given`, or else the token of this user, and mask it in all later error messages. ConfigError, which ends
    with `way_out`, if there is no token."""
    if not (token := given or get_token()):
        raise ConfigError(f"there is no token for the hub, so nothing can be sent; run `hf auth login`, or {way_out}")
    remember(token)
    return token


def refuse_public(api: HfApi, repo: str, setting: str) -> None:
    """ConfigError if the existing repository `repo` is public, so that `setting`, which asks for a private one, would do
    nothing."""
    if not api.repo_info(repo).private:
        raise ConfigError(f"{repo} exists and is public, so {setting} would do nothing and nothing was sent; make it private on "
                          "the hub, or give another name")


def commit(api: HfApi, repo: str, files: Files, stale: Iterable[str], message: str | None = None,
           revision: str | None = None) -> CommitInfo:
    """Send `files` to the repository `repo` and delete the files with the names `stale` there, in one commit. `message`: None is
    `MESSAGE`. `revision`: the branch; None is the main one."""
    added = [CommitOperationAdd(name, each) for name, each in files.items()]
    gone = [CommitOperationDelete(name) for name in stale]
    return api.create_commit(repo, [*added, *gone], commit_message=message or MESSAGE, revision=revision)
