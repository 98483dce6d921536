"""What became of the pictures, in numbers that add up to all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from squares import cut_off_after, settings, settings_of_rows, texts

from fluxtune.captioning import run
from fluxtune.captioning.writing import EndOfReview, Outcome, Proposal
from fluxtune.config.schema import Config
from fluxtune.events import ignore

pytestmark = pytest.mark.usefixtures("captioner")


def told(outcome: Outcome) -> dict[str, int]:
    """What is not zero, which adds up."""
    data = outcome.as_data()
    counts = {name: number for name, number in data.items() if name != "pictures" and number}
    assert sum(counts.values()) == data["pictures"]
    return counts


def test_pictures_beyond_a_limit_are_waiting(photos: Path) -> None:
    assert told(run.caption(settings(photos), ignore, limit=2)) == {"written": 2, "waiting": 3}
    assert told(run.caption(settings(photos), ignore, dry_run=True, limit=1)) == {
        "proposed": 1,
        "kept": 2,
        "waiting": 2,
    }
    assert told(run.caption(settings(photos), ignore)) == {"written": 3, "kept": 2}


def test_captions_beyond_a_limit_of_rewording_are_waiting(photos: Path) -> None:
    run.caption(settings(photos), ignore)
    assert told(run.reword(settings(photos, prefix="photo of"), ignore, limit=2)) == {"written": 2, "waiting": 3}


def test_pictures_that_a_review_did_not_come_to_are_waiting(photos: Path) -> None:
    def decide(proposal: Proposal) -> str | None:
        if proposal.number == 3:
            raise EndOfReview
        return None

    assert told(run.caption(settings(photos), ignore, decide)) == {"declined": 2, "waiting": 3}


@pytest.mark.parametrize("rows", [(".", "."), (".", "more"), ("more", "."), ("more", "more", ".")])
def test_pictures_of_folders_that_lie_in_each_other_all_count(photos: Path, rows: tuple[str, ...]) -> None:
    config = settings_of_rows(*({"path": str(photos / row)} for row in rows))
    first = told(run.caption(config, ignore))
    assert first["written"] == 5
    again = told(
        run.reword(Config.model_validate({**config.model_dump(), "captioning": {"prefix": "photo of"}}), ignore)
    )
    assert again == first


def test_what_was_written_before_a_cut_counts_as_kept(photos: Path) -> None:
    config = settings(photos, existing="overwrite")
    with pytest.raises(KeyboardInterrupt):
        run.caption(config, ignore, cut_off_after(2))
    assert told(run.caption(config, ignore)) == {"written": 3, "kept": 2}


def test_a_limit_gets_past_pictures_that_cannot_be_captioned(photos: Path) -> None:
    for name in ("a", "b"):
        (photos / f"{name}.png").write_bytes(b"damaged")
    assert told(run.caption(settings(photos), ignore, limit=2)) == {"written": 2, "failed": 2, "waiting": 1}
    assert sorted(texts(photos)) == ["c.txt", "d.txt"]
