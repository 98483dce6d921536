"""Every way in which the hub can refuse a model: one message and one next step for each."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fluxtune.errors import BaseModelError, FluxtuneError, StorageError
from fluxtune.hub.layouts import BASE_MODEL, ModelKind

TOKENS_PAGE = "https://huggingface.co/settings/tokens"


@contextmanager
def explaining(model: str, revision: str | None, kind: ModelKind) -> Iterator[None]:
    """Turns what the hub's client raises into one message and one next step."""
    from huggingface_hub import errors

    try:
        yield
    # HTTPError is what the network library of the installed client raises, httpx or requests.
    except (errors.HfHubHTTPError, errors.HTTPError, errors.HFValidationError, OSError) as error:
        raise _explained(error, model, revision, kind) from error


def _explained(error: Exception, model: str, revision: str | None, kind: ModelKind) -> FluxtuneError:
    """One message and one next step for each way in which the hub can refuse."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{model}"
    status = status_of(error)
    if isinstance(error, errors.GatedRepoError) and status == 403:
        return BaseModelError(
            f"{model} is gated, and the account of your token has not accepted its licence",
            hint=f"open {page} signed in as that account and accept the licence; a fine-grained token also "
            f"needs the permission to read gated repositories ({TOKENS_PAGE}); then run the command again",
        )
    if isinstance(error, errors.GatedRepoError):
        return BaseModelError(
            f"{model} is gated, and there is no hub token on this machine",
            hint=f"accept the licence at {page}, make a token at {TOKENS_PAGE}, save it with `hf auth login` "
            "(or set HF_TOKEN), then run the command again",
        )
    if status == 401 and get_token() is not None:
        return BaseModelError(
            f"the hub refused your token while asking for {model}: it is wrong, expired or revoked",
            hint=f"make a new one at {TOKENS_PAGE} and save it with `hf auth login` (or set HF_TOKEN)",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return BaseModelError(
            f"{model} has no revision {revision}", hint=f"see {page}/commits, or leave model.revision unset"
        )
    # Without a token, the hub answers 401 to whatever is not public or does not exist.
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return BaseModelError(
            f"no such {kind.noun}: no folder {model} here, and no public model {model} on the hub",
            hint=nearest(model, kind) + "; a private one needs a token: `hf auth login`",
        )
    return _broken_off(error, model, status, kind)


def _broken_off(error: Exception, model: str, status: int | None, kind: ModelKind) -> FluxtuneError:
    """The download failed for a reason that lies with the disk, the network or the hub's machines."""
    from huggingface_hub import constants, errors

    again = "run the command again: what was downloaded is kept"
    size = " (FLUX.1 takes about 34 GB)" if kind is BASE_MODEL else ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"the disk became full while downloading {model}{size}",
            where=constants.HF_HUB_CACHE,
            hint=f"free some space or set HF_HOME to a folder on another disk; {again}",
        )
    if status is not None:
        seen = f"the hub answered {status} while downloading {model}"
        return BaseModelError(seen, hint=f"wait a little and {again}")
    network = (errors.LocalEntryNotFoundError, errors.HTTPError, ConnectionError, TimeoutError)
    if isinstance(error, network):
        return BaseModelError(
            f"the network or the hub ({constants.ENDPOINT}) cannot be reached, and {model} is not complete "
            "in the local hub cache",
            hint=f"check the connection (and HTTPS_PROXY behind a proxy), then {again}",
        )
    return StorageError(
        f"cannot write the hub cache while downloading {model}: {error}",
        where=constants.HF_HUB_CACHE,
        hint="check that you may write there, or set HF_HOME to another folder",
    )


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind a hub error, also where the hub's client wrapped the error in another one."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return int(cause.response.status_code)
        cause = cause.__cause__
    return None


def nearest(name: str, kind: ModelKind) -> str:
    """What was probably meant, as a hint."""
    lowered = {known.lower(): known for known in kind.known}
    lowered.update({known.rpartition("/")[2]: lowered[known] for known in list(lowered)})
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    known = ", ".join(kind.known)
    return f"did you mean {lowered[close[0]]}?" if close else f"for instance: {known}"
