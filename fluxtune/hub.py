"""From the name of a base model to a folder with its files: the embedded one, a local folder, or a hub id.

A hub model is looked up in the local cache first; when it is complete there, nothing touches the network.
"""

from __future__ import annotations

import difflib
import errno
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxtune import nano
from fluxtune.errors import BaseModelError, FluxtuneError, StorageError, some_names
from fluxtune.events import Phase, Progress, Sink, ignore
from fluxtune.nano import EMBEDDED

if TYPE_CHECKING:
    from tqdm.std import tqdm

KNOWN_MODELS = (
    EMBEDDED,
    "black-forest-labs/FLUX.1-dev",
    "black-forest-labs/FLUX.1-schnell",
    "black-forest-labs/FLUX.1-Krea-dev",
)
INDEX = "model_index.json"
# The folders of a diffusers model; the same weights in one big file beside them are left where they are.
WANTED = (INDEX, "transformer/*", "vae/*", "text_encoder*/*", "tokenizer*/*", "scheduler/*")
UNWANTED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.onnx*", "*.gguf")
TOKENS_PAGE = "https://huggingface.co/settings/tokens"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(
    base: str,
    revision: str | None = None,
    offline: bool = False,
    on_event: Sink = ignore,
    check_index: Callable[[Path], object] = lambda _: None,
) -> Path:
    """The local folder of a base model in diffusers' layout, downloaded if need be.

    Args:
        base: ``nano``, a local folder, or a hub id such as ``black-forest-labs/FLUX.1-dev``.
        revision: branch, tag or commit of a hub model.
        offline: never use the network (also with ``HF_HUB_OFFLINE`` set).
        on_event: is told of a download and its progress.
        check_index: is given a hub model's ``model_index.json`` before the rest is downloaded; may raise.

    Raises:
        BaseModelError: missing, incomplete, gated or unreachable; the hint has the next step.
        StorageError: the disk is full, or the cache cannot be written.
    """
    if base == EMBEDDED:
        return _complete(nano.model_folder(), base, "the installation is damaged: install fluxtune again")
    path = Path(os.path.expanduser(base))
    if path.is_dir():
        return _complete(path, base, "complete the folder, or give a hub id to download the model")
    if path.is_file():
        raise BaseModelError(
            "the base model is a single file; fluxtune reads folders in diffusers' layout",
            where=base,
            hint="give the model's hub id, or a folder made with FluxPipeline's save_pretrained",
        )
    if not _HUB_ID.fullmatch(base) or base.startswith(("./", "../")):
        raise BaseModelError(
            "no such base model: neither a folder here nor a hub id (owner/name)",
            where=base,
            hint=_nearest(base),
        )
    return _from_hub(base, revision, offline, on_event, check_index)


def at_hand(base: str, revision: str | None = None) -> Path | None:
    """The folder of a base model as far as it is on this machine, whole or not; no network is used."""
    if base == EMBEDDED:
        return nano.model_folder()
    path = Path(os.path.expanduser(base))
    if path.is_dir():
        return path
    return _cached(base, revision) if _HUB_ID.fullmatch(base) else None


def missing_files(folder: Path) -> list[str]:
    """What a model folder in diffusers' layout lacks of the parts that its ``model_index.json`` lists."""
    if not (folder / INDEX).is_file():
        return [INDEX]
    try:
        parts = json.loads((folder / INDEX).read_text(encoding="utf-8")).items()
        present = [name for name, kind in parts if isinstance(kind, list) and kind[0] is not None]
    except (ValueError, AttributeError, IndexError):
        return [f"{INDEX} (it is not a readable index)"]
    return [missing for name in present for missing in _missing_of_part(folder / name)]


def _missing_of_part(part: Path) -> list[str]:
    if part.name.startswith("tokenizer"):
        return _absent(part, ["tokenizer_config.json"]) + _missing_vocabulary(part)
    if part.name == "scheduler":
        return _absent(part, ["scheduler_config.json"])
    if part.name in ("transformer", "vae") or part.name.startswith("text_encoder"):
        return _absent(part, ["config.json"]) + _missing_weights(part)
    return []


def _missing_vocabulary(part: Path) -> list[str]:
    for names in (["tokenizer.json"], ["spiece.model"], ["vocab.json", "merges.txt"]):
        missing = _absent(part, names)
        if not missing:
            return []
    return missing


def _missing_weights(part: Path) -> list[str]:
    """Absent shards of the part's index; without an index, the whole weights must be in one file."""
    index = next(part.glob("*.safetensors.index.json"), None)
    if index is not None:
        try:
            shards = {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, AttributeError, TypeError):
            return [f"{part.name}/{index.name} (it is not a readable index)"]
        return _absent(part, sorted(shards))
    if any(path.is_file() and "-of-" not in path.name for path in part.glob("*.safetensors")):
        return []
    stem = "model" if part.name.startswith("text_encoder") else "diffusion_pytorch_model"
    return [f"{part.name}/{stem}.safetensors"]


def _absent(part: Path, names: list[str]) -> list[str]:
    return [f"{part.name}/{name}" for name in names if not (part / name).is_file()]


def _complete(folder: Path, base: str, hint: str) -> Path:
    missing = missing_files(folder)
    if missing == [INDEX]:
        raise BaseModelError(
            f"not a model folder in diffusers' layout: it has no {INDEX}", where=str(folder), hint=hint
        )
    if missing:
        raise BaseModelError(
            f"the base model {base} is incomplete; missing: {some_names(missing)}", where=str(folder), hint=hint
        )
    return folder


def _from_hub(
    model: str, revision: str | None, offline: bool, on_event: Sink, check_index: Callable[[Path], object]
) -> Path:
    from huggingface_hub import constants

    cached = _cached(model, revision)
    missing = missing_files(cached) if cached else [INDEX]
    if cached and not missing:
        return cached
    if offline or constants.HF_HUB_OFFLINE:
        seen = "only a part of it is" if cached else "it is not"
        raise BaseModelError(
            f"the base model {model} is needed and the network is switched off, but {seen} in the local hub "
            f"cache; missing: {some_names(missing)}",
            where=constants.HF_HUB_CACHE,
            hint=f"while online, run: hf download {model}; or unset HF_HUB_OFFLINE and model.offline",
        )
    on_event(Phase("download", f"downloading {model}"))
    with _explaining(model, revision):
        index = _download(model, revision, [INDEX], ignore) / INDEX
        if index.is_file():
            check_index(index)
        folder = _download(model, revision, WANTED, on_event)
    return _complete(folder, model, f"this is not how FLUX models are laid out: {_nearest(model)}")


def _cached(model: str, revision: str | None) -> Path | None:
    """The snapshot folder of a model in the hub cache, whole or not."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(model, INDEX, revision=revision)
    return Path(index).parent if isinstance(index, str) else None


def _download(model: str, revision: str | None, wanted: Sequence[str], on_event: Sink) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        model,
        revision=revision,
        allow_patterns=list(wanted),
        ignore_patterns=list(UNWANTED),
        tqdm_class=_progress_bar(on_event),
    )
    return Path(folder)


@contextmanager
def _explaining(model: str, revision: str | None) -> Iterator[None]:
    """Turns what the hub's client raises into one message and one next step."""
    from huggingface_hub import errors

    try:
        yield
    # HTTPError is what the network library of the installed client raises, httpx or requests.
    except (errors.HfHubHTTPError, errors.HTTPError, errors.HFValidationError, OSError) as error:
        raise _explained(error, model, revision) from error


def _explained(error: Exception, model: str, revision: str | None) -> FluxtuneError:
    """One message and one next step for each way in which the hub can refuse."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{model}"
    status = _status(error)
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
            f"no such base model: no folder {model} here, and no public model {model} on the hub",
            hint=_nearest(model) + "; a private one needs a token: `hf auth login`",
        )
    return _broken_off(error, model, status)


def _broken_off(error: Exception, model: str, status: int | None) -> FluxtuneError:
    """The download failed for a reason that lies with the disk, the network or the hub's machines."""
    from huggingface_hub import constants, errors

    again = "run the command again: what was downloaded is kept"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"the disk became full while downloading {model} (FLUX.1 takes about 34 GB)",
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


def _status(error: BaseException) -> int | None:
    """The HTTP status behind a hub error, also where the hub's client wrapped the error in another one."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return int(cause.response.status_code)
        cause = cause.__cause__
    return None


def _nearest(name: str) -> str:
    """What was probably meant, as a hint."""
    lowered = {known.lower(): known for known in KNOWN_MODELS}
    lowered.update({known.rpartition("/")[2]: lowered[known] for known in list(lowered)})
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    known = ", ".join(KNOWN_MODELS)
    return f"did you mean {lowered[close[0]]}?" if close else f"for instance: {known}"


def _progress_bar(on_event: Sink) -> type[tqdm[Any]]:
    """A tqdm that reports bytes as events instead of drawing."""
    from tqdm.std import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "mininterval": 0.5})

        def display(self, *args: Any, **kwargs: Any) -> bool:
            # Newer clients draw a second bar of bytes, for those that came over the network.
            if self.unit == "B" and self.total and "Downloading bytes" not in str(self.desc):
                known = self.format_dict
                rate = known["rate"] or (known["n"] / known["elapsed"] if known["elapsed"] else None)
                left = (self.total - self.n) / rate if rate else None
                on_event(Progress("download", int(self.n), int(self.total), "B", rate, left))
            return True

    return Bar
