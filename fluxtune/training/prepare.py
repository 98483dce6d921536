"""Encode what the caches miss: every picture once, every caption once, then the encoders leave memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from fluxtune.config.dataset import DatasetConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.buckets import Plan, plan
from fluxtune.dataset.cache import Store, open_store
from fluxtune.dataset.findings import as_warnings
from fluxtune.dataset.pictures import Picture
from fluxtune.dataset.shape_checks import check_shapes
from fluxtune.environment.folders import cache_folder
from fluxtune.events import Phase, Sink, Warning
from fluxtune.files import require_space
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import Request
from fluxtune.flux.load import free_memory
from fluxtune.flux.weights import DTYPES
from fluxtune.training.encode import encode_captions, encode_pictures, fit_masks
from fluxtune.training.examples import Example, Prepared, examples_of, text_keys_of
from fluxtune.training.prior import prior_requests
from fluxtune.training.tokens import warn_of_tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Missing(Generic[T]):
    """What a store lacks: the items to be encoded, the bytes that they will take, and how that reads for people."""

    items: list[T]
    bytes: int
    summary: str


def prepare(
    config: Config,
    base: Base,
    pictures: list[Picture],
    prompts: Iterable[str],
    dtype: torch.dtype,
    device: str,
    on_event: Sink,
) -> Prepared:
    """Bring latents and masks of all pictures and embeddings of all captions into the cache.

    Args:
        prompts: further texts that will be needed: previews, preservation, the empty caption of dropout.

    Raises:
        BaseModelError: an encoder cannot be loaded, or gives values that are no finite numbers.
        DataError: a picture or mask was changed since it was checked.
        StorageError: the disk has no room for what is missing, or the cache cannot be written.
    """
    buckets = told_buckets(config, pictures, base.family.side_multiple, on_event)
    examples = list(examples_of(config, base, pictures, buckets, dtype, device))
    captions = {caption for example in examples for caption in (example.caption, example.class_caption) if caption}
    text_keys = text_keys_of(config, base, {*captions, *prompts}, dtype, device)
    prepared = Prepared(
        examples=examples,
        latents=open_store("latents", on_event),
        masks=open_store("masks", on_event),
        texts=open_store("texts", on_event),
        text_keys=text_keys,
        priors=open_store("priors", on_event),
        prior_requests=prior_requests(config, base, text_keys, dtype, device),
    )
    warn_of_tokens(base, (example.caption for example in examples), config.dataset.trigger, on_event)
    of_caption = base.text_bytes(DTYPES.get(config.memory.text_precision, dtype))
    multiple = base.family.side_multiple
    by_mask = {example.mask: example for example in examples if example.mask is not None}
    texts = _missing(prepared.texts, {key: text for text, key in prepared.text_keys.items()}, lambda _: of_caption)
    latents = _missing(prepared.latents, {example.latents: example for example in examples}, _latent_bytes)
    masks = _missing(prepared.masks, by_mask, lambda example: _mask_bytes(example, multiple))
    priors = _missing(prepared.priors, prepared.prior_requests, _latent_bytes)
    needed = texts.bytes + latents.bytes + masks.bytes + priors.bytes
    require_space(cache_folder(), needed, "caption embeddings, latents, masks and prior pictures")
    # Each encoder lives in its own call, and leaves memory with it before the next one loads.
    on_event(Phase("encode captions", texts.summary))
    if texts.items:
        encode_captions(prepared, texts.items, config, base, dtype, device, on_event)
        free_memory()
    on_event(Phase("encode pictures", latents.summary))
    if latents.items:
        encode_pictures(prepared, latents.items, config, base, dtype, device, on_event)
        free_memory()
    if by_mask:
        on_event(Phase("fit masks", masks.summary))
        fit_masks(prepared, masks.items, multiple, on_event)
    return prepared


def told_buckets(config: Config, pictures: list[Picture], multiple: int, on_event: Sink) -> Plan:
    """Which picture is trained at which size, and what there is to say of it."""
    buckets = plan([picture.size for picture in pictures], config.dataset, multiple)
    on_event(Phase("buckets", buckets.summary()))
    for warning in as_warnings(list(check_shapes(buckets, pictures, config.training.batch_size))):
        on_event(warning)
    for warning in _of_variants(config.dataset):
        on_event(warning)
    return buckets


def _missing(store: Store, by_key: dict[str, T], size: Callable[[T], int]) -> Missing[T]:
    """``3 new (12 MiB), 9 from the cache, which holds 40 more of other data or settings (0.2 GiB)``."""
    items = [by_key[key] for key in store.missing(by_key)]
    needed = sum(map(size, items))
    new = f"{len(items)} new ({-(-needed // 2**20)} MiB)" if items else "0 new"
    number, held = store.others(by_key)
    beside = f", which holds {number} more of other data or settings ({held / 2**30:.1f} GiB)" if number else ""
    return Missing(items, needed, f"{new}, {len(by_key) - len(items)} from the cache{beside}")


def _latent_bytes(picture: Example | Request) -> int:
    """Of float32 latents with 16 channels at an eighth of the picture's sides."""
    return (picture.width // 8) * (picture.height // 8) * 16 * 4


def _mask_bytes(example: Example, multiple: int) -> int:
    """Of a float32 for each token."""
    return (example.width // multiple) * (example.height // multiple) * 4


def _of_variants(dataset: DatasetConfig) -> Iterator[Warning]:
    if dataset.flip:
        yield Warning(
            "mirrored pictures are trained on too: text in them is learned mirrored, and faces lose what tells "
            "their sides apart",
            where="dataset.flip",
            hint="leave it off for people, text and logos",
        )
    if dataset.colour_jitter and dataset.crops == 1:
        yield Warning(
            "colours are not changed, for the first crop of a picture never is, and there are no others",
            where="dataset.colour_jitter",
            hint="set dataset.crops to 2 or more",
        )
