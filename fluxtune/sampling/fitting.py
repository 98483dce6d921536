"""Whether pictures fit the card, known before weights load: what is left open is decided, what cannot fit is refused.

The policy is that of training: the most precise base that fits comes first, and only where nothing fits, and
``memory.recompute`` is auto, the VAE goes over pictures tile by tile and blocks are streamed from system memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fluxtune.config.memory import MemoryConfig
from fluxtune.errors import OutOfMemoryError
from fluxtune.events import Phase, Plan, Sink, Warning
from fluxtune.flux.empty import transformer_config
from fluxtune.flux.sizes import choices, text_precision_within, transformer_bytes
from fluxtune.memory.forecast import Forecast
from fluxtune.sampling.forecasts import pictures_of, texts_of
from fluxtune.sampling.simulation import Painting


def fitted(painting: Painting, on_event: Sink, tries_anyway: bool = False) -> MemoryConfig:
    """``painting.memory`` with nothing left open.

    Args:
        tries_anyway: warn of what does not fit instead of refusing it.

    Raises:
        OutOfMemoryError: there is no plan that fits.
    """
    capacity = painting.capacity
    if capacity is None:
        return _unlimited(painting).memory
    on_event(Phase("plan", "simulating what the pictures take in memory"))
    text_precision = text_precision_within(painting.base, painting.memory, painting.dtype, capacity)
    painting = painting.with_memory(text_precision=text_precision)
    texts = texts_of(painting)
    candidate, pictures = painting, None
    for candidate in _candidates(painting):
        if _weights(candidate) > capacity:
            continue
        pictures = pictures_of(candidate)
        if pictures.reserved <= capacity:
            break
    pictures = pictures or pictures_of(candidate)
    forecast = Forecast((*texts.phases, *pictures.phases))
    fits = forecast.reserved <= capacity
    on_event(_as_event(candidate, forecast, fits))
    if not fits:
        refusal = _refusal(candidate, forecast)
        if not tries_anyway:
            raise refusal
        on_event(Warning(refusal.message, where="memory"))
    return candidate.memory


def _unlimited(painting: Painting) -> Painting:
    """Everything that is open as it is most precise."""
    memory, most = painting.memory, choices(painting.dtype)[0]
    return painting.with_memory(
        base_precision=most if memory.base_precision == "auto" else memory.base_precision,
        text_precision=most if memory.text_precision == "auto" else memory.text_precision,
        modulation="card" if memory.modulation == "auto" else memory.modulation,
    )


def _candidates(painting: Painting) -> Iterator[Painting]:
    """Plans, the most wanted first."""
    memory = painting.memory
    precisions = choices(painting.dtype) if memory.base_precision == "auto" else (memory.base_precision,)
    places = ("card", "ahead") if memory.modulation == "auto" else (memory.modulation,)
    for relief in _reliefs(painting):
        for precision in precisions:
            for place in places:
                yield painting.with_memory(base_precision=precision, modulation=place, **relief)


def _reliefs(painting: Painting) -> Iterator[dict[str, Any]]:
    yield {}
    if painting.memory.recompute != "auto":
        return
    tiles = painting.memory.vae_tiling or not painting.to_the_bit
    if tiles and not painting.memory.vae_tiling:
        yield {"vae_tiling": True}
    if not painting.memory.streamed_blocks:
        number = _blocks(painting)
        for share in (8, 4, 2, 1):
            yield {"vae_tiling": tiles, "streamed_blocks": max(1, number // share)}


def _weights(painting: Painting) -> int:
    """Bytes that the card must have at least; of streamed blocks none."""
    memory = painting.memory
    kept = 1 - memory.streamed_blocks / _blocks(painting)
    return round(transformer_bytes(painting.base, memory, painting.dtype) * max(0.0, kept - 0.1))


def _blocks(painting: Painting) -> int:
    config = transformer_config(painting.base.family, painting.base.folder)
    return sum(config[key] for key in painting.base.family.depths)


def _as_event(painting: Painting, forecast: Forecast, fits: bool) -> Plan:
    assert painting.capacity is not None
    memory, peak = painting.memory, forecast.peak
    parts = [f"{memory.base_precision} base"]
    parts += ["modulation computed ahead"] if memory.modulation == "ahead" else []
    parts += [f"{memory.streamed_blocks} blocks streamed"] if memory.streamed_blocks else []
    parts += ["VAE in tiles"] if memory.vae_tiling else []
    told = f"{', '.join(parts)}; at most {_gib(peak.bytes)} of {_gib(painting.capacity)} GiB ({peak.phase})"
    phases = [{"phase": each.phase, "alive": each.alive, "reserved": each.reserved} for each in forecast.phases]
    return Plan(told, memory.model_dump(mode="json"), fits, painting.capacity, forecast.reserved, phases, {}, 0.0)


def _refusal(painting: Painting, forecast: Forecast) -> OutOfMemoryError:
    assert painting.capacity is not None
    worst = max(forecast.phases, key=lambda phase: max(phase.reserved, phase.bytes))
    ways = "; ".join(f"{argument} ({meaning})" for argument, meaning in _changes(painting, worst.phase))
    return OutOfMemoryError(
        f"these pictures take {_gib(forecast.reserved)} GiB of graphics memory ({worst.phase}), and "
        f"{_gib(painting.capacity)} GiB are there",
        where="memory",
        hint=f"what takes less: {ways}" if ways else "take a smaller --size, or another base model",
    )


def _changes(painting: Painting, phase: str) -> Iterator[tuple[str, str]]:
    """What to set that takes less, as arguments and in words, of what is not set yet."""
    memory = painting.memory
    if phase == "encode captions":
        if memory.text_precision != "nf4":
            yield "--set memory.text_precision=auto", "text encoders as precisely as fits"
        return
    if painting.batch > 1:
        yield "--batch-size 1", "one picture at a time"
    if not memory.vae_tiling:
        yield "--set memory.vae_tiling=true", "the VAE tile by tile"
    if memory.modulation == "card":
        yield "--set memory.modulation=auto", "modulation weights in system memory"
    if memory.base_precision not in ("nf4", "int8"):
        yield "--set memory.base_precision=auto", "the base as precisely as fits"
    if not memory.streamed_blocks:
        yield f"--set memory.streamed_blocks={_blocks(painting)}", "all blocks streamed from system memory"
    if painting.size[0] * painting.size[1] > 768 * 768 * 1.1:
        yield "--size 768x768", "smaller pictures"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
