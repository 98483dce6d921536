"""The libraries that work on a model needs, out of the way of what frees memory."""

from __future__ import annotations

import gc
import importlib
from functools import cache

_LIBRARIES = (
    "accelerate",
    "diffusers.models",
    "diffusers.pipelines.pipeline_utils",
    "peft",
    "transformers.modeling_utils",
)


@cache
def set_libraries_aside() -> None:
    """Imports them, once a process, and has each later collection of garbage pass over what they are made of.

    A collection goes through all that was imported, which takes half a second, and runs collect before and after
    previews. It passes over whatever else is alive now, too: call it before a model is loaded, and only in a process
    that is all fluxtune's.
    """
    for library in _LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
