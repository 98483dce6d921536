"""What the files of a model make other libraries raise, told as a fault of the model's folder."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluxtune.errors import BaseModelError, FluxtuneError


@contextmanager
def blaming(folder: Path, what: str, hint: str) -> Iterator[None]:
    """Inside, whatever fails is the fault of the model in the folder, unless an error of ours says otherwise.

    Args:
        what: what is wrong, as the message begins.

    Raises:
        BaseModelError: something failed.
    """
    try:
        yield
    except BaseModelError as error:
        error.where = error.where or str(folder)
        raise
    except FluxtuneError:
        raise
    # Files that are damaged, or not of one model, fail anywhere in transformers, jinja2, torch, safetensors and
    # tokenizers, in errors of any type: the last of these raises Exception itself.
    except Exception as error:
        reason = textwrap.shorten(str(error), 300, placeholder="...")
        told = f"{reason} ({type(error).__name__})" if reason else type(error).__name__
        raise BaseModelError(f"{what}: {told}", where=str(folder), hint=hint) from error
