"""What pictures take in memory: each part simulated once, and kept."""

from __future__ import annotations

from fluxtune.flux.kept_simulations import kept
from fluxtune.memory.forecast import Forecast, forecast_from
from fluxtune.sampling.simulation import Painting, foresee_pictures, foresee_texts


def texts_of(painting: Painting) -> Forecast:
    """``simulation.foresee_texts``, kept."""
    decides = {
        "text_precision": painting.memory.text_precision,
        "precision": str(painting.dtype),
        "as_cuda": painting.as_cuda,
        "capacity": painting.capacity,
    }
    return kept("prompts", painting.base, decides, lambda: foresee_texts(painting), forecast_from)


def pictures_of(painting: Painting) -> Forecast:
    """``simulation.foresee_pictures``, kept."""
    decides = {
        "memory": painting.memory.model_dump(exclude={"budget", "text_precision", "cache_quantized"}),
        "precision": str(painting.dtype),
        "size": painting.size,
        "batch": painting.batch,
        "led_away": painting.led_away,
        "started": painting.started,
        "lora_bytes": painting.lora_bytes,
        "as_cuda": painting.as_cuda,
        "capacity": painting.capacity,
    }
    return kept("pictures", painting.base, decides, lambda: foresee_pictures(painting), forecast_from)
