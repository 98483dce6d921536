"""What base model a run was begun with, and whether it goes on with the same one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fluxtune.config.model import ModelConfig
from fluxtune.dataset.cache import key_of
from fluxtune.errors import BaseModelError
from fluxtune.events import Sink
from fluxtune.files import sampled_digest
from fluxtune.flux.base import WITH_WEIGHTS, Base, open_base


def base_facts(base: Base) -> dict[str, Any]:
    """What is recorded of a base model: its name, its commit on the hub, and digests of its weights.

    ``transformer`` is the fingerprint that caches use, which a copy may not share; ``weights`` are digests of content.
    """
    return {
        "name": base.name,
        "commit": base.commit,
        "transformer": base.fingerprint("transformer"),
        "weights": _weights(base),
    }


def opens_as_begun(facts: Mapping[str, Any]) -> Callable[[ModelConfig, Sink], Base]:
    """``open_base`` for a run that goes on.

    Args:
        facts: those of the run.

    Raises:
        BaseModelError: also where a part has other weights than the run was begun with.
    """
    return partial(_open, facts.get("base", {}))


def _open(begun: Mapping[str, Any], model: ModelConfig, on_event: Sink) -> Base:
    base = open_base(model, on_event)
    if other := _other_parts(begun, base):
        commit = begun.get("commit")
        raise BaseModelError(
            f"the base model is not the one that this run was begun with: other weights of {', '.join(other)}",
            where=base.name,
            hint=f"pin the commit that it was begun with: --set model.revision={commit}"
            if commit and commit != base.commit
            else "put the files back that it was begun with, or start a new run without --resume",
        )
    return base


def _other_parts(begun: Mapping[str, Any], base: Base) -> list[str]:
    recorded = begun.get("weights")
    if recorded is None:  # the first runs recorded the fingerprint alone
        same = begun.get("transformer") in (None, base.fingerprint("transformer"))
        return [] if same else ["transformer"]
    now = _weights(base)
    return [part for part in recorded if recorded[part] != now.get(part)]


def _weights(base: Base) -> dict[str, str]:
    parts = [part for part in WITH_WEIGHTS if part in base.files or (base.folder / part).is_dir()]
    return {part: key_of(*map(sampled_digest, base.weight_files(part))) for part in parts}
