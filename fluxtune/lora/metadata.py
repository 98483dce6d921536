"""What a LoRA file says about itself: ModelSpec 1.0.1 and the ``ss_*`` keys that UIs read.

Values are strings. No local path, user name or caption goes in, but for captions' words that were asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

import torch
from safetensors.torch import save

from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import CONVENTIONS, Convention, LoraFormat
from fluxtune.redaction import for_sharing

_IMPLEMENTATION = "https://github.com/huggingface/diffusers"
# Forge takes a LoRA for one of FLUX by dev's architecture or by this name alone.
_IMPLEMENTATION_BUT_DEV = "https://github.com/black-forest-labs/flux"


@dataclass(frozen=True)
class LoraFacts:
    """The facts of a trained LoRA. ``base`` is a hub id or a bare name, never a path; ``resolution`` in pixels.

    Attributes:
        author, description, license, tags: as ModelSpec has them; empty ones are left out.
        buckets: (width, height) in pixels -> how often pictures of that size are seen in an epoch.
        phrases: what captions say -> how often; None keeps that out of the file.
        thumbnail: a ``data:image/`` URL.
    """

    name: str
    base: str
    architecture: str
    rank: int
    steps: int
    epochs: int
    learning_rate: float
    optimizer: str
    seed: int
    resolution: int
    pictures: int
    started: float
    finished: float
    trigger: str | None
    version: str
    author: str = ""
    description: str = ""
    license: str = ""
    tags: tuple[str, ...] = ()
    buckets: Mapping[tuple[int, int], int] = field(default_factory=dict)
    phrases: Mapping[str, int] | None = None
    thumbnail: str | None = None


def lora_metadata(facts: LoraFacts, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """The header of a file that holds ``tensors``.

    The scale is folded into the weights, so the file's alpha equals its rank.
    """
    content = tensor_hash(tensors)
    finished = datetime.fromtimestamp(facts.finished, UTC).isoformat(timespec="seconds")
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": facts.architecture,
        "modelspec.implementation": _IMPLEMENTATION if "-dev/" in facts.architecture else _IMPLEMENTATION_BUT_DEV,
        "modelspec.title": facts.name,
        "modelspec.description": facts.description
        or f"A LoRA for {facts.base}: {facts.steps} steps on {facts.pictures} pictures.",
        "modelspec.author": facts.author,
        "modelspec.license": facts.license,
        "modelspec.tags": ", ".join(facts.tags),
        "modelspec.date": finished,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.hash_sha256": f"0x{content}",
        "ss_base_model_version": "flux1",
        "ss_sd_model_name": facts.base,
        "ss_output_name": facts.name,
        "ss_network_dim": str(facts.rank),
        "ss_network_alpha": str(float(facts.rank)),
        "ss_steps": str(facts.steps),
        "ss_epoch": str(facts.epochs),
        "ss_learning_rate": str(facts.learning_rate),
        "ss_optimizer": facts.optimizer,
        "ss_seed": str(facts.seed),
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_num_train_images": str(facts.pictures),
        "ss_training_started_at": str(facts.started),
        "ss_training_finished_at": str(facts.finished),
        "sshs_model_hash": content,
        "fluxtune.version": facts.version,
    }
    if facts.trigger:
        metadata["modelspec.trigger_phrase"] = facts.trigger
        metadata["modelspec.usage_hint"] = f"put {facts.trigger} into the prompt"
    if facts.buckets:
        metadata["ss_bucket_info"] = json.dumps(_bucket_info(facts.buckets))
    if facts.phrases is not None:
        # Kohya's trainers have a row for each folder, by its name.
        metadata["ss_tag_frequency"] = json.dumps({facts.name: dict(facts.phrases)}, ensure_ascii=False)
    shared = {name: for_sharing(value) for name, value in metadata.items() if value}
    return shared | ({_THUMBNAIL: facts.thumbnail} if facts.thumbnail else {})


def _bucket_info(buckets: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    rows = [{"resolution": list(size), "count": count} for size, count in sorted(buckets.items())]
    return {"buckets": {str(number): row for number, row in enumerate(rows)}}


def restated(
    metadata: Mapping[str, str],
    tensors: dict[str, torch.Tensor],
    layers: Mapping[str, LoraLayer],
    convention: Convention,
    captions: bool = False,
) -> dict[str, str]:
    """The header for a file that was made from one with ``metadata``: what is still true of it, and its own hashes.

    Of other trainers' fields only those are carried over that programs read, and no path in them. Empty ones go.

    Args:
        captions: also those that hold words of the captions, and the names of folders with them.
    """
    carried = (*_CARRIED, *_NAMES, *(_OF_CAPTIONS if captions else ()))
    kept = {
        key: _without_path(value) if key in _NAMES else value
        for key, value in metadata.items()
        if value
        and (key in carried or key.startswith(("modelspec.", "fluxtune.")))
        and _FORMS.get(key, _ANY).match(value)
    }
    kept = {key: value if key == _THUMBNAIL else for_sharing(value) for key, value in kept.items()}
    digest = tensor_hash(tensors)
    architecture = kept.setdefault("modelspec.architecture", "flux-1-dev/lora")
    ranks = {layer.a.shape[0] for layer in layers.values()}
    alphas = {layer.scale * layer.a.shape[0] if convention.alpha else layer.a.shape[0] for layer in layers.values()}
    kept |= {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": (
            _IMPLEMENTATION if "-dev/" in architecture and not convention.fused else _IMPLEMENTATION_BUT_DEV
        ),
        "modelspec.hash_sha256": f"0x{digest}",
        "sshs_model_hash": digest,
        "ss_base_model_version": kept.get("ss_base_model_version", "flux1"),
        # Of layers that differ the largest, as in kohya's own files with ranks by block.
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": f"{max(alphas):g}",
    }
    if convention is CONVENTIONS[LoraFormat.KOHYA]:
        kept["ss_network_module"] = "networks.lora_flux"
    return kept


def _without_path(name: str) -> str:
    """A model's name as it is, if it is a hub's; of a path its last part."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.endswith((".safetensors", ".sft", ".ckpt", ".gguf")):
        return name
    return PurePath(name.replace("\\", "/")).name


_NAMES = ("ss_sd_model_name", "ss_output_name")
"""Fields that may hold a path; of that its last part stays."""
_OF_CAPTIONS = ("ss_tag_frequency", "ss_training_comment")
OF_DATA = (*_OF_CAPTIONS, "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_datasets")
"""Fields in which trainers' files hold captions' words, and names of folders and files."""
_THUMBNAIL = "modelspec.thumbnail"
_ANY = re.compile("")
# SwarmUI's reader throws at another resolution, and takes no other thumbnail: a path, for instance, stays here.
_FORMS = {_THUMBNAIL: re.compile("data:image/"), "modelspec.resolution": re.compile(r"[0-9]+x[0-9]+\Z")}
_CARRIED = (
    "ss_base_model_version",
    "ss_bucket_info",
    "ss_clip_skip",
    "ss_epoch",
    "ss_learning_rate",
    "ss_num_epochs",
    "ss_num_train_images",
    "ss_optimizer",
    "ss_resolution",
    "ss_seed",
    "ss_steps",
    "ss_training_finished_at",
    "ss_training_started_at",
)


def tensor_hash(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over all tensor bytes as the file holds them: what ModelSpec calls ``hash_sha256``."""
    serialised = save(tensors)
    header = int.from_bytes(serialised[:8], "little")
    return hashlib.sha256(memoryview(serialised)[8 + header :]).hexdigest()
