"""How far FLUX moves noise levels for the size of a picture; apart from what needs torch."""

from __future__ import annotations

import math


def flux_shift(tokens: int) -> float:
    """``e^mu`` for a picture of ``tokens`` packed tokens.

    mu lies on the line through (256, 0.5) and (4096, 1.15): ``get_lin_function`` in ``black-forest-labs/flux``
    ``src/flux/sampling.py``.
    """
    slope = (1.15 - 0.5) / (4096 - 256)
    return math.exp(0.5 + slope * (tokens - 256))
