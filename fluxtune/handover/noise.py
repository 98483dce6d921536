"""Noise levels as each trainer draws them: distributions that are the same under other names.

The logit of a level that is drawn as the sigmoid of a normal number is normal, and a shift by k adds ln k to it (arXiv
2403.03206, equations 19 and 23): a logit-normal with mean m is one without, shifted by e^m. A uniform level is nearly
the sigmoid of a normal number, too, with a deviation of 1.7: their distribution functions differ by less than 0.01.
"""

from __future__ import annotations

from math import exp, log

from fluxtune.flux.shift import flux_shift
from fluxtune.handover.rules import Values, Wanted

OURS = ("training.timestep_sampling", "training.logit_mean", "training.logit_std", "training.shift")
LIKE_UNIFORM = 1.7
"""Deviation of the normal number whose sigmoid is nearly uniform."""


def logit_normal(mean: float = 0.0, std: float = 1.0, shift: float = 1.0, by_size: bool = False) -> Values:
    """Our settings for the sigmoid of a normal number, shifted by a factor or by the picture's size."""
    values: Values = {"training.logit_mean": float(mean), "training.logit_std": float(std)}
    if by_size:
        return values | {"training.timestep_sampling": "flux-shift"}
    if shift == 1.0:
        return values | {"training.timestep_sampling": "logit-normal"}
    return values | {"training.timestep_sampling": "shift", "training.shift": float(shift)}


def uniform(shift: float = 1.0, by_size: bool = False) -> Values:
    """Our settings for uniform levels, shifted by a factor or by the picture's size; shifted ones only nearly so."""
    if shift == 1.0 and not by_size:
        return {"training.timestep_sampling": "uniform"}
    return logit_normal(std=LIKE_UNIFORM, shift=shift, by_size=by_size)


def factor(wanted: Wanted) -> float:
    """The factor that moves levels of a run of ours, besides what the picture's size does; its mean is part of it."""
    own = wanted["training.shift"] if wanted["training.timestep_sampling"] == "shift" else 1.0
    return float(f"{own * exp(wanted['training.logit_mean']):.6g}")


def whole_mean(wanted: Wanted) -> float:
    """The mean of the logit of all levels, where the size of pictures counts as that of a square."""
    own = {"shift": wanted["training.shift"], "flux-shift": flux_shift((wanted["dataset.resolution"][0] // 16) ** 2)}
    moved = log(own.get(wanted["training.timestep_sampling"], 1.0))
    return float(f"{wanted['training.logit_mean'] + moved:.6g}")
