"""From the name of a model to a folder with its files: the embedded one, a local folder, or a hub id.

A hub model is looked up in the local cache first; when it is complete there, nothing touches the network.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from fluxtune.errors import BaseModelError, some_names
from fluxtune.events import Phase, Progress, Sink, ignore
from fluxtune.hub.layouts import BASE_MODEL, INDEX, ModelKind
from fluxtune.hub.refusals import explaining, nearest
from fluxtune.nano import EMBEDDED
from fluxtune.tensor_files import PickleError, pickles_in, refuse_pickle_names

if TYPE_CHECKING:
    from tqdm.std import tqdm

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(
    base: str,
    revision: str | None = None,
    offline: bool = False,
    on_event: Sink = ignore,
    check_index: Callable[[Path], object] = lambda _: None,
    kind: ModelKind = BASE_MODEL,
) -> Path:
    """The local folder of a model, downloaded if need be.

    Args:
        base: ``nano``, a local folder, or a hub id such as ``black-forest-labs/FLUX.1-dev``.
        revision: branch, tag or commit of a hub model.
        offline: never use the network (also with ``HF_HUB_OFFLINE`` set).
        on_event: is told of a download and its progress.
        check_index: is given a hub model's index before the rest is downloaded; may raise.
        kind: what the model is for, and so what makes it whole.

    Raises:
        BaseModelError: missing, incomplete, gated or unreachable; the hint has the next step.
        StorageError: the disk is full, or the cache cannot be written.
    """
    if base == EMBEDDED:
        return _complete(kind.embedded(), base, "the installation is damaged: install fluxtune again", kind)
    path = Path(os.path.expanduser(base))
    if path.is_dir():
        return _complete(path, base, "complete the folder, or give a hub id to download the model", kind)
    if path.is_file():
        _refuse_pickle(path)
    if path.is_file() and kind.index == INDEX and path.suffix == ".safetensors":
        raise BaseModelError(
            "the base model is a single file, which has neither configs nor tokenizers",
            where=base,
            hint=f"name it as the transformer: --base {kind.known[1]} --set model.transformer={quote(base)}",
        )
    if path.is_file():
        raise BaseModelError(
            f"the {kind.noun} is a single file; fluxtune reads folders in {kind.layout}",
            where=base,
            hint="give the model's hub id, or a folder made with save_pretrained",
        )
    if not _HUB_ID.fullmatch(base) or base.startswith(("./", "../")):
        raise BaseModelError(
            f"no such {kind.noun}: neither a folder here nor a hub id (owner/name)",
            where=base,
            hint=nearest(base, kind),
        )
    return _from_hub(base, revision, offline, on_event, check_index, kind)


def at_hand(base: str, revision: str | None = None) -> Path | None:
    """The folder of a base model as far as it is on this machine, whole or not; no network is used."""
    if base == EMBEDDED:
        return BASE_MODEL.embedded()
    path = Path(os.path.expanduser(base))
    if path.is_dir():
        return path
    return _cached(base, revision, BASE_MODEL) if _HUB_ID.fullmatch(base) else None


def _complete(folder: Path, name: str, hint: str, kind: ModelKind) -> Path:
    missing = kind.missing(folder)
    if missing == [kind.index]:
        raise BaseModelError(
            f"not a model folder in {kind.layout}: it has no {kind.index}", where=str(folder), hint=hint
        )
    if missing and (pickles := pickles_in(folder)):
        raise BaseModelError(
            f"the {kind.noun} {name} has weights as pickles, which can run code when they are opened; only safetensors "
            f"is read: there is {some_names(pickles, 2)}, and missing: {some_names(missing)}",
            where=str(folder),
            hint="look for a version with .safetensors; or convert it, where you trust whoever made it: load it with "
            f"{kind.library} and save it with save_pretrained(FOLDER, safe_serialization=True)",
        )
    if missing:
        raise BaseModelError(
            f"the {kind.noun} {name} is incomplete; missing: {some_names(missing)}", where=str(folder), hint=hint
        )
    return folder


def _refuse_pickle(file: Path) -> None:
    try:
        refuse_pickle_names(file)
    except PickleError as error:
        raise BaseModelError(str(error), where=str(file), hint=error.hint) from error


def _from_hub(
    model: str,
    revision: str | None,
    offline: bool,
    on_event: Sink,
    check_index: Callable[[Path], object],
    kind: ModelKind,
) -> Path:
    from huggingface_hub import constants

    cached = _cached(model, revision, kind)
    missing = kind.missing(cached) if cached else [kind.index]
    if cached and not missing:
        return cached
    if offline or constants.HF_HUB_OFFLINE:
        seen = "only a part of it is" if cached else "it is not"
        raise BaseModelError(
            f"the {kind.noun} {model} is needed and the network is switched off, but {seen} in the local hub "
            f"cache; missing: {some_names(missing)}",
            where=constants.HF_HUB_CACHE,
            hint=f"while online, run: hf download {model}; or unset HF_HUB_OFFLINE and model.offline",
        )
    on_event(Phase("download", f"downloading {model}"))
    with explaining(model, revision, kind):
        index = _download(model, revision, [kind.index], kind, ignore) / kind.index
        if index.is_file():
            check_index(index)
        # Of the same commit, also where the branch moves on meanwhile.
        folder = _download(model, index.parent.name, kind.wanted, kind, on_event)
    return _complete(folder, model, f"this is no {kind.noun} in {kind.layout}: {nearest(model, kind)}", kind)


def _cached(model: str, revision: str | None, kind: ModelKind) -> Path | None:
    """The snapshot folder of a model in the hub cache, whole or not."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(model, kind.index, revision=revision)
    return Path(index).parent if isinstance(index, str) else None


def _download(model: str, revision: str | None, wanted: Sequence[str], kind: ModelKind, on_event: Sink) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        model,
        revision=revision,
        allow_patterns=list(wanted),
        ignore_patterns=list(kind.unwanted),
        tqdm_class=_progress_bar(on_event),
    )
    return Path(folder)


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
