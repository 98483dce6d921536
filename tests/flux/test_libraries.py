from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from fluxtune.flux.libraries import set_libraries_aside


@pytest.fixture(autouse=True)
def set_aside() -> Iterator[None]:
    """Libraries that are set aside anew, and not by the tests themselves."""
    gc.unfreeze()
    set_libraries_aside.cache_clear()
    set_libraries_aside()
    yield


def test_collections_pass_over_the_libraries() -> None:
    import diffusers.models.modeling_utils as loading

    assert gc.get_freeze_count() > 100_000
    assert not any(thing is loading.__dict__ for thing in gc.get_objects())


def test_what_is_made_later_is_still_given_back() -> None:
    class Held:
        """Refers to itself, as a model with hooks may."""

        def __init__(self) -> None:
            self.itself = self

    gone = weakref.ref(Held())
    gc.collect()
    assert gone() is None


def test_what_is_alive_later_is_not_set_aside() -> None:
    alive = [[]]
    set_libraries_aside()
    assert any(thing is alive for thing in gc.get_objects())
