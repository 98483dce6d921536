"""What a run learns from: each crop of each picture with its texts, and where the cache holds what was made of them.

Cache keys hold everything that decides the content: picture bytes, size and crop, caption, encoder files, precision.
So one changed caption re-encodes one entry, and nothing stale is ever used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from fluxtune.config.schema import Config
from fluxtune.dataset.buckets import Plan, Sample
from fluxtune.dataset.cache import Store, key_of
from fluxtune.dataset.captions import mirrored, with_class
from fluxtune.dataset.images import CENTRE, Crop, crops_of
from fluxtune.dataset.pictures import Picture
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import Request
from fluxtune.flux.families import Text
from fluxtune.flux.load import VAE_TILE

_CACHE_FORMAT = 2


@dataclass(frozen=True)
class Example:
    """One crop of a picture at one size: where it was, where its latents, mask and texts are. Sizes in pixels.

    ``tokens`` are those of its latents.
    """

    picture: Picture
    crop: Crop
    width: int
    height: int
    tokens: int
    latents: str
    mask: str | None
    caption: str
    class_caption: str | None


@dataclass(frozen=True)
class Prepared:
    """What training reads: examples, and stores of latents, masks and texts on disk.

    The prior pictures (``prior.py``) are made later, by the base model; here is how, by their keys in their store.
    """

    examples: list[Example]
    latents: Store
    masks: Store
    texts: Store
    text_keys: dict[str, str]
    priors: Store
    prior_requests: dict[str, Request]

    def text(self, caption: str) -> Text:
        """The embeddings of a caption that was encoded, ``[1, ...]`` each."""
        return self.texts.read(self.text_keys[caption])


def examples_of(
    config: Config, base: Base, pictures: list[Picture], buckets: Plan, dtype: torch.dtype, device: str
) -> Iterator[Example]:
    """Every crop of every sample of the plan, those of one picture one after the other."""
    dataset = config.dataset
    whole = (base.fingerprint("vae"), str(dtype), torch.device(device).type)
    for sample in buckets.samples:
        tiled = config.memory.vae_tiling and max(sample.size) > VAE_TILE
        encoder = (*whole, "tiles", VAE_TILE) if tiled else whole
        picture = pictures[sample.picture]
        class_caption = _class_caption(picture, config)
        crops = crops_of(picture.digest, dataset.crops, dataset.crop_jitter, dataset.flip, dataset.colour_jitter)
        for crop in crops:
            yield Example(
                picture=picture,
                crop=crop,
                width=sample.width,
                height=sample.height,
                tokens=sample.width * sample.height // base.family.side_multiple**2,
                latents=_latents_key(encoder, picture, sample, dataset.background, crop),
                mask=_mask_key(picture, sample, base.family.side_multiple, crop),
                caption=mirrored(picture.caption) if crop.mirrored else picture.caption,
                class_caption=mirrored(class_caption) if crop.mirrored and class_caption else class_caption,
            )


def text_keys_of(
    config: Config, base: Base, captions: Iterable[str], dtype: torch.dtype, device: str
) -> dict[str, str]:
    """The key of each caption's embeddings, sorted by caption."""
    encoder = (base.fingerprint(*base.family.text_folders), str(dtype), torch.device(device).type)
    how = (*encoder, config.memory.text_precision, base.text_tokens)
    return {caption: key_of("text", _CACHE_FORMAT, *how, caption) for caption in sorted(set(captions))}


def _latents_key(encoder: tuple[str | int, ...], picture: Picture, sample: Sample, background: str, crop: Crop) -> str:
    place = () if crop == CENTRE else crop.place
    colours = vars(crop.colours).values() if crop.colours else ()
    return key_of("latents", _CACHE_FORMAT, *encoder, picture.digest, *sample.size, background, *place, *colours)


def _mask_key(picture: Picture, sample: Sample, multiple: int, crop: Crop) -> str | None:
    if picture.mask is None or picture.mask_digest is None:
        return None
    whose = "alpha" if picture.mask == picture.path else "mask"
    size = (*picture.size, *sample.size, multiple)
    return key_of("mask", _CACHE_FORMAT, whose, picture.mask_digest, *size, *crop.place)


def _class_caption(picture: Picture, config: Config) -> str | None:
    """The caption as it would read of any thing of the subject's class, or None when nothing reads it."""
    trigger, class_word = config.dataset.trigger, config.dataset.class_word
    preservation = config.training.preservation
    if class_word is None or preservation.method != "output" or preservation.prompts:
        return None
    if not picture.is_subject:
        return picture.caption
    return with_class(picture.caption, trigger, class_word) if trigger else class_word
