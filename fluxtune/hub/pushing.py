"""A folder put into a repository on the hub, as one commit; and every way in which the hub can refuse that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fluxtune.errors import FluxtuneError, HubError, UsageError
from fluxtune.events import Phase, Sink, Warning
from fluxtune.hub.refusals import TOKENS_PAGE, status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_AGAIN = "run the command again: nothing was committed"


@dataclass(frozen=True)
class Pushed:
    """Where the files are: address of the repository, and the hub's id of the commit."""

    url: str
    commit: str
    private: bool


def require_pushable(repository: str) -> None:
    """Refuse what cannot be pushed, before the work that would end in it. No network is used.

    Raises:
        UsageError: no such name can be a repository's.
        HubError: the network is switched off, or there is no token.
    """
    from huggingface_hub import constants, errors, get_token
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        is_name = re.fullmatch(r"[^/]+/[^/]+", repository) is not None
    except errors.HFValidationError:
        is_name = False
    if not is_name:
        raise UsageError(
            f"{repository!r:.120} is no repository: wanted a user or an organization, a slash, and letters, digits, "
            "dashes, dots and underscores",
            where="--push",
            hint="for instance --push ada/zorvex-flux-lora",
        )
    if constants.HF_HUB_OFFLINE:
        raise HubError("the network is switched off (HF_HUB_OFFLINE)", where=repository, hint="unset HF_HUB_OFFLINE")
    if get_token() is None:
        raise HubError(
            "there is no hub token on this machine",
            where=repository,
            hint=f"make one that may write at {TOKENS_PAGE}, and save it with `hf auth login` (or set HF_TOKEN)",
        )


def push(folder: Path, repository: str, public: bool, message: str, on_event: Sink) -> Pushed:
    """Put every file of a folder into a repository, in one commit; other files there stay as they are.

    Args:
        repository: ``user/name``; made where it is not there.
        public: a repository that is made can be seen by everybody. One that is there keeps its visibility.

    Raises:
        UsageError: the repository is there already and public, and ``public`` is not given; or it is no name of one.
        HubError: the hub refused, cannot be reached, or the network is switched off.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    require_pushable(repository)
    disable_progress_bars()
    api = HfApi()
    with _explaining(repository):
        private = _is_private(api, repository)
        if private is False and not public:
            raise UsageError(
                "this repository is public, and what is pushed there can be seen by everybody",
                where=repository,
                hint="add --public, or name another repository",
            )
        if private and public:
            on_event(Warning("the repository is private and stays so", where=repository))
        if private is None:
            private = not public
            on_event(Phase("push", f"making the {'private' if private else 'public'} repository {repository}"))
            api.create_repo(repository, private=private)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files) / 2**20
        on_event(Phase("push", f"{len(files)} files, {size:.1f} MiB, to {repository}"))
        operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files]
        commit = api.create_commit(repository, operations, commit_message=message)
        return Pushed(f"{api.endpoint}/{repository}", commit.oid, private)


def _is_private(api: HfApi, repository: str) -> bool | None:
    """None where there is no such repository, as far as the token may see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return bool(api.model_info(repository).private)
    except RepositoryNotFoundError as error:
        if status_of(error) == 401:
            raise
        return None


@contextmanager
def _explaining(repository: str) -> Iterator[None]:
    """Turns what the hub's client raises into one message and one next step."""
    from huggingface_hub import errors

    try:
        yield
    # HTTPError is what the network library of the client raises; RuntimeError wraps what happened to a file.
    except (errors.HfHubHTTPError, errors.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _explained(error, repository) from error


def _explained(error: Exception, repository: str) -> FluxtuneError:
    status = status_of(error)
    said = _server_message(error)
    if status == 401:
        return HubError(
            "the hub refused your token: it is wrong, expired or revoked",
            where=repository,
            hint=f"make a new one at {TOKENS_PAGE} and save it with `hf auth login` (or set HF_TOKEN)",
        )
    if status == 403:
        return HubError(
            f"your token may not write there{said}",
            where=repository,
            hint=f"name a repository of your own, or make a token with the permission to write at {TOKENS_PAGE}",
        )
    if status == 404:
        return HubError(
            f"the hub knows no such user or organization, or your token may not see it{said}",
            where=repository,
            hint="check the name before the slash; `hf auth whoami` shows yours",
        )
    if status in (409, 412):
        return HubError(f"something else changed the repository at the same time{said}", where=repository, hint=_AGAIN)
    if status is not None and status >= 500:
        return HubError(f"the hub failed and answered {status}", where=repository, hint=f"wait a little and {_AGAIN}")
    if status is not None:
        return HubError(f"the hub answered {status}{said}", where=repository, hint=_AGAIN)
    return _without_answer(error, repository)


def _without_answer(error: Exception, repository: str) -> FluxtuneError:
    from huggingface_hub import constants, errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    network = (errors.HTTPError, ConnectionError, TimeoutError)
    if any(isinstance(each, network) for each in chain):
        return HubError(
            f"the network or the hub ({constants.ENDPOINT}) cannot be reached",
            where=repository,
            hint=f"check the connection (and HTTPS_PROXY behind a proxy), then {_AGAIN}",
        )
    reason = " ".join(str(chain[-1]).split())
    return HubError(f"the files could not be uploaded: {reason:.300}", where=repository, hint=_AGAIN)


def _server_message(error: BaseException) -> str:
    """What the hub itself said of it, where it did."""
    message = getattr(error, "server_message", None)
    return f": {' '.join(message.split()):.300}" if message else ""
