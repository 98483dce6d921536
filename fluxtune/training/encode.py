"""The work behind the cache: captions through the text encoders, pictures through the VAE, masks onto tokens.

Pictures are decoded and cut in a few threads, a bounded way ahead of the encoder, so that it need not wait for them and
memory does not grow with the data. What was encoded before an error or an interruption is kept.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import torch

from fluxtune import rng
from fluxtune.config.schema import Config
from fluxtune.dataset.ahead import DECODERS, ahead
from fluxtune.dataset.cache import Store
from fluxtune.dataset.images import fit, open_image, to_pixels
from fluxtune.dataset.masks import checked_mask, on_tokens
from fluxtune.errors import BaseModelError, DataError
from fluxtune.events import Progress, Sink
from fluxtune.files import sha256_of
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import encode_prompt
from fluxtune.flux.load import load_text_pipeline, load_vae
from fluxtune.training.examples import Example, Prepared

Entries: TypeAlias = Generator[tuple[str, dict[str, torch.Tensor]], None, None]

PARCEL_BYTES = 64 * 2**20
"""Pixels that are cut out of one decoded picture at once, at most (but one crop always is)."""
PARCELS = DECODERS + 2
"""Parcels in memory, but for the one that is being encoded: each thread cuts one while two are ready."""


def encode_captions(
    prepared: Prepared,
    captions: Sequence[str],
    config: Config,
    base: Base,
    dtype: torch.dtype,
    device: str,
    on_event: Sink,
) -> None:
    """Bring the embeddings of captions into the cache, each as the family's ``encode_text`` gives it.

    Raises:
        BaseModelError: the text encoders cannot be loaded, or give values that are no finite numbers.
        StorageError: the cache cannot be written.
    """
    pipeline = load_text_pipeline(base, config.memory, dtype, device, on_event)

    def entries() -> Entries:
        for caption in captions:
            encoded = encode_prompt(base, pipeline, caption)
            yield prepared.text_keys[caption], {name: tensor.cpu() for name, tensor in encoded.items()}

    _keep(entries(), len(captions), prepared.texts, "captions", on_event)


def encode_pictures(
    prepared: Prepared,
    examples: Sequence[Example],
    config: Config,
    base: Base,
    dtype: torch.dtype,
    device: str,
    on_event: Sink,
) -> None:
    """Bring the latents of examples into the cache: float32 ``[features, height / multiple, width / multiple]``.

    Raises:
        BaseModelError: the VAE cannot be loaded, or gives values that are no finite numbers.
        DataError: a picture was changed since it was checked.
        StorageError: the cache cannot be written.
    """
    vae = load_vae(base, dtype, device, config.memory.vae_tiling)

    def cut(parcel: list[Example]) -> list[tuple[Example, torch.Tensor]]:
        picture = parcel[0].picture
        _require_unchanged("picture", picture.path, picture.digest)
        image = open_image(picture.path, config.dataset.background)
        return [(example, to_pixels(fit(image, example.width, example.height, example.crop))) for example in parcel]

    def encoded(example: Example, pixels: torch.Tensor) -> torch.Tensor:
        # Of the picture and its size alone: another precision or cache format takes the same sample.
        noise = rng.generator(0, "posterior", example.picture.digest, example.width, example.height)
        with torch.no_grad():
            return base.family.encode_image(vae, pixels[None].to(device, dtype), noise)[0].float().cpu()

    def entries() -> Entries:
        with closing(ahead(cut, _parcels(examples), DECODERS, PARCELS)) as parcels:
            for parcel in parcels:
                for example, pixels in parcel:
                    yield example.latents, {"latents": encoded(example, pixels)}

    _keep(entries(), len(examples), prepared.latents, "pictures", on_event)


def fit_masks(prepared: Prepared, examples: Sequence[Example], multiple: int, on_event: Sink) -> None:
    """Bring the masks of examples into the cache: on the grid of tokens, cut as their pictures are.

    Raises:
        DataError: a mask was changed since it was checked.
        StorageError: the cache cannot be written.
    """

    def cut(parcel: list[Example]) -> list[tuple[str, torch.Tensor]]:
        picture = parcel[0].picture
        assert picture.mask is not None and picture.mask_digest is not None
        _require_unchanged("mask", picture.mask, picture.mask_digest)
        mask, _ = checked_mask(picture.mask, picture.path, picture.size)
        return [(str(each.mask), on_tokens(mask, each.width, each.height, each.crop, multiple)) for each in parcel]

    def entries() -> Entries:
        with closing(ahead(cut, _parcels(examples), DECODERS, PARCELS)) as parcels:
            for parcel in parcels:
                for key, mask in parcel:
                    yield key, {"mask": mask}

    _keep(entries(), len(examples), prepared.masks, "masks", on_event)


def _require_unchanged(what: str, path: Path, digest: str) -> None:
    # Hours may lie between the first look at the pictures and this one.
    if sha256_of(path) != digest:
        raise DataError(f"the {what} was changed since it was checked", where=str(path), hint="start again")


def _parcels(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Neighbours of one picture together, for it is decoded once for them; no more than ``PARCEL_BYTES`` of pixels."""
    for _, neighbours in groupby(examples, key=lambda example: example.picture.path):
        run = list(neighbours)
        largest = max(example.width * example.height for example in run) * 3 * torch.float32.itemsize
        number = max(1, PARCEL_BYTES // largest)
        for start in range(0, len(run), number):
            yield run[start : start + number]


def _keep(entries: Entries, total: int, store: Store, unit: str, on_event: Sink) -> None:
    """Write entries as they come."""
    started = time.monotonic()
    # Closed before the last ones are written: a decoder that still runs needs no more than its picture's time.
    with store.writing() as write, closing(entries):
        for done, (key, tensors) in enumerate(entries, start=1):
            if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
                raise BaseModelError(
                    f"the base model's encoder gave values that are no finite numbers for one of the {unit}",
                    hint='hold it in more bits: memory.text_precision = "bf16", training.precision = "fp32"',
                )
            write(key, tensors)
            rate = done / max(1e-9, time.monotonic() - started)
            on_event(Progress(f"encode {unit}", done, total, unit, rate, (total - done) / rate))
