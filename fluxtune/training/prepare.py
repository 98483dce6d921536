"""Encode what the caches miss: every picture once, every caption once, then the encoders leave memory.

Cache keys hold everything that decides the content: picture bytes, size and crop, caption, encoder files, precision.
So one changed caption re-encodes one entry, and nothing stale is ever used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch

from fluxtune import rng
from fluxtune.config.schema import Config
from fluxtune.dataset.buckets import Plan, Sample, plan
from fluxtune.dataset.cache import Store, key_of, open_store
from fluxtune.dataset.captions import mirrored, with_class
from fluxtune.dataset.findings import as_warnings
from fluxtune.dataset.images import CENTRE, Crop, crops_of, fit, open_image, to_pixels
from fluxtune.dataset.masks import checked_mask, on_tokens
from fluxtune.dataset.pictures import Picture
from fluxtune.dataset.shape_checks import check_shapes
from fluxtune.errors import BaseModelError, DataError
from fluxtune.events import Phase, Progress, Sink, Warning
from fluxtune.files import require_space, sha256_of
from fluxtune.flux.denoise import encode_prompt
from fluxtune.flux.families import Text
from fluxtune.flux.load import Base, free_memory, load_text_pipeline, load_vae
from fluxtune.training.tokens import warn_of_tokens

_CACHE_FORMAT = 2
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One crop of a picture at one size: where it was, where its latents, mask and texts are. Sizes in pixels."""

    picture: Picture
    crop: Crop
    width: int
    height: int
    latents: str
    mask: str | None
    caption: str
    class_caption: str | None


@dataclass(frozen=True)
class Prepared:
    """What training reads: examples, and stores of latents, masks and texts on disk."""

    examples: list[Example]
    latents: Store
    masks: Store
    texts: Store
    text_keys: dict[str, str]

    def text(self, caption: str) -> Text:
        """The embeddings of a caption that was encoded, ``[1, ...]`` each."""
        return self.texts.read(self.text_keys[caption])


def prepare(
    config: Config,
    base: Base,
    pictures: list[Picture],
    prompts: Iterable[str],
    dtype: torch.dtype,
    device: str,
    on_event: Sink,
) -> Prepared:
    """Bring latents of all pictures and embeddings of all captions into the cache.

    Args:
        prompts: further texts that will be needed: previews, preservation, the empty caption of dropout.
    """
    buckets = _planned(config, pictures, base.family.side_multiple, on_event)
    latents = open_store("latents", on_event)
    masks = open_store("masks", on_event)
    texts = open_store("texts", on_event)
    vae_mark = base.fingerprint("vae")
    text_mark = base.fingerprint(*base.family.text_folders)
    held = config.memory.text_precision
    device_type = torch.device(device).type

    def text_key(caption: str) -> str:
        return key_of("text", _CACHE_FORMAT, text_mark, str(dtype), device_type, held, base.text_tokens, caption)

    def latents_key(sample: Sample, crop: Crop) -> str:
        picture = pictures[sample.picture]
        size = (sample.width, sample.height)
        return key_of(
            "latents",
            _CACHE_FORMAT,
            vae_mark,
            str(dtype),
            device_type,
            picture.digest,
            *size,
            config.dataset.background,
            *([] if crop == CENTRE else vars(crop).values()),
        )

    mask_digests = {picture.mask: sha256_of(picture.mask) for picture in pictures if picture.mask is not None}

    def mask_key(sample: Sample, crop: Crop) -> str | None:
        picture = pictures[sample.picture]
        if picture.mask is None:
            return None
        size = (*picture.size, sample.width, sample.height, base.family.side_multiple)
        whose = "alpha" if picture.mask == picture.path else "mask"
        return key_of("mask", _CACHE_FORMAT, whose, mask_digests[picture.mask], *size, *vars(crop).values())

    def example_of(sample: Sample, crop: Crop) -> Example:
        picture = pictures[sample.picture]
        class_caption = _class_caption(picture, config)
        return Example(
            picture=picture,
            crop=crop,
            width=sample.width,
            height=sample.height,
            latents=latents_key(sample, crop),
            mask=mask_key(sample, crop),
            caption=mirrored(picture.caption) if crop.mirrored else picture.caption,
            class_caption=mirrored(class_caption) if crop.mirrored and class_caption else class_caption,
        )

    dataset = config.dataset
    examples = [
        example_of(sample, crop)
        for sample in buckets.samples
        for crop in crops_of(pictures[sample.picture].digest, dataset.crops, dataset.crop_jitter, dataset.flip)
    ]
    wanted = {caption for example in examples for caption in (example.caption, example.class_caption) if caption}
    text_keys = {caption: text_key(caption) for caption in sorted({*wanted, *prompts})}
    warn_of_tokens(base, (example.caption for example in examples), config.dataset.trigger, on_event)
    prepared = Prepared(examples, latents, masks, texts, text_keys)
    # Each encoder lives in its own call, and leaves memory with it before the next one loads.
    _encode_texts(prepared, config, base, dtype, device, on_event)
    free_memory()
    _encode_pictures(prepared, config, base, dtype, device, on_event)
    free_memory()
    _fit_masks(prepared, base.family.side_multiple, on_event)
    return prepared


def _planned(config: Config, pictures: list[Picture], multiple: int, on_event: Sink) -> Plan:
    """Which picture is trained at which size, and what there is to say of it."""
    buckets = plan([picture.size for picture in pictures], config.dataset, multiple)
    on_event(Phase("buckets", buckets.summary()))
    for warning in as_warnings(list(check_shapes(buckets, pictures, config.training.batch_size))):
        on_event(warning)
    if config.dataset.flip:
        on_event(
            Warning(
                "mirrored pictures are trained on too: text in them is learned mirrored, and faces lose what tells "
                "their sides apart",
                where="dataset.flip",
                hint="leave it off for people, text and logos",
            )
        )
    return buckets


def _class_caption(picture: Picture, config: Config) -> str | None:
    """The caption as it would read of any thing of the subject's class, or None when nothing reads it."""
    trigger, class_word = config.dataset.trigger, config.dataset.class_word
    preservation = config.training.preservation
    if class_word is None or preservation.method != "output" or preservation.prompts:
        return None
    if not picture.is_subject:
        return picture.caption
    return with_class(picture.caption, trigger, class_word) if trigger else class_word


def _encode_texts(
    prepared: Prepared, config: Config, base: Base, dtype: torch.dtype, device: str, on_event: Sink
) -> None:
    by_key = {key: caption for caption, key in prepared.text_keys.items()}
    missing = [by_key[key] for key in prepared.texts.missing(by_key)]
    on_event(Phase("encode captions", _reuse(prepared.texts, list(by_key), len(missing))))
    if not missing:
        return
    pipeline = load_text_pipeline(base, config.memory, dtype, device)

    def encode(caption: str) -> dict[str, torch.Tensor]:
        return {name: tensor.cpu() for name, tensor in encode_prompt(base, pipeline, caption).items()}

    first = encode(missing[0])
    size = sum(tensor.nbytes for tensor in first.values())
    require_space(prepared.texts.folder, size * len(missing), "the caption embeddings")
    _encode_each(missing, encode, lambda item: prepared.text_keys[item], prepared.texts, "captions", on_event)


def _encode_pictures(
    prepared: Prepared, config: Config, base: Base, dtype: torch.dtype, device: str, on_event: Sink
) -> None:
    by_key = {example.latents: example for example in prepared.examples}
    missing = [by_key[key] for key in prepared.latents.missing(by_key)]
    on_event(Phase("encode pictures", _reuse(prepared.latents, list(by_key), len(missing))))
    if not missing:
        return
    require_space(prepared.latents.folder, sum(_latent_bytes(example) for example in missing), "the latents")
    vae = load_vae(base, dtype, device)

    def encode(example: Example) -> dict[str, torch.Tensor]:
        # Hours may lie between the first look at the pictures and this one.
        if sha256_of(example.picture.path) != example.picture.digest:
            raise DataError(
                "the picture was changed since it was checked", where=str(example.picture.path), hint="start again"
            )
        image = open_image(example.picture.path, config.dataset.background)
        pixels = to_pixels(fit(image, example.width, example.height, example.crop))[None].to(device, dtype)
        # Of the picture and its size alone: another precision or cache format takes the same sample.
        noise = rng.generator(0, "posterior", example.picture.digest, example.width, example.height)
        with torch.no_grad():
            latents = base.family.encode_image(vae, pixels, noise)
        return {"latents": latents[0].float().cpu()}

    _encode_each(missing, encode, lambda example: example.latents, prepared.latents, "pictures", on_event)


def _fit_masks(prepared: Prepared, multiple: int, on_event: Sink) -> None:
    """Masks on the grid of tokens, cut as their pictures are."""
    by_key = {example.mask: example for example in prepared.examples if example.mask is not None}
    missing = [by_key[key] for key in prepared.masks.missing(by_key)]
    if by_key:
        on_event(Phase("fit masks", _reuse(prepared.masks, list(by_key), len(missing))))

    def fitted(example: Example) -> dict[str, torch.Tensor]:
        picture = example.picture
        mask, _ = checked_mask(picture.mask or picture.path, picture.path, picture.size)
        return {"mask": on_tokens(mask, example.width, example.height, example.crop, multiple)}

    _encode_each(missing, fitted, lambda example: str(example.mask), prepared.masks, "masks", on_event)


def _latent_bytes(example: Example) -> int:
    """Bytes of float32 latents with 16 channels at an eighth of the picture's sides."""
    return (example.width // 8) * (example.height // 8) * 16 * 4


def _reuse(store: Store, keys: list[str], new: int) -> str:
    """``3 new, 9 from the cache, which holds 40 more of other data or settings (0.2 GiB)``."""
    number, size = store.others(keys)
    beside = f", which holds {number} more of other data or settings ({size / 2**30:.1f} GiB)" if number else ""
    return f"{new} new, {len(keys) - new} from the cache{beside}"


def _encode_each(
    items: list[T],
    encode: Callable[[T], dict[str, torch.Tensor]],
    key: Callable[[T], str],
    store: Store,
    unit: str,
    on_event: Sink,
) -> None:
    started = time.monotonic()
    with store.writing() as write:
        for done, item in enumerate(items, start=1):
            encoded = encode(item)
            if not all(bool(tensor.isfinite().all()) for tensor in encoded.values()):
                raise BaseModelError(
                    f"the base model's encoder gave values that are no finite numbers for one of the {unit}",
                    hint='hold it in more bits: memory.text_precision = "bf16", training.precision = "fp32"',
                )
            write(key(item), encoded)
            rate = done / max(1e-9, time.monotonic() - started)
            on_event(Progress(f"encode {unit}", done, len(items), unit, rate, (len(items) - done) / rate))
