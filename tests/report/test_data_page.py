"""The page of a data set: complete in itself, with every picture and every problem, harmless whatever names hold."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.schema import Config
from fluxtune.dataset.caption_checks import ESTIMATES
from fluxtune.dataset.validation import validate
from fluxtune.errors import StorageError
from fluxtune.events import Event, Progress, ignore
from fluxtune.report.data_page import THUMBNAIL, write_data_page

EVIL = "</script><script>alert(1)</script><!-- <b>bold"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(skimage.data.coffee()).save(folder / "wide.png")
    Image.fromarray(skimage.data.astronaut()).save(folder / "square.jpg")
    (folder / "broken.png").write_bytes(b"damaged")
    (folder / "wide.txt").write_text(EVIL)
    return folder


def page_of(folder: Path, file: Path, on_event: Any = ignore) -> str:
    dataset = {"folders": [FolderConfig(path=str(folder))], "resolution": [512]}
    config = Config.model_validate({"dataset": dataset})
    write_data_page(validate(config, ESTIMATES, 16, ignore), file, "#ffffff", on_event)
    return file.read_text(encoding="utf-8")


def data_in(page: str) -> dict[str, Any]:
    """What a browser would find in the element that holds the data."""

    class Finder(HTMLParser):
        inside = False
        text = ""

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "script" and ("id", "data") in attributes

        def handle_endtag(self, tag: str) -> None:
            self.inside = False

        def handle_data(self, data: str) -> None:
            self.text += data if self.inside else ""

    finder = Finder()
    finder.feed(page)
    return dict(json.loads(finder.text))


def test_every_picture_is_on_the_page_with_its_crop_and_its_problems(photos: Path, tmp_path: Path) -> None:
    data = data_in(page_of(photos, tmp_path / "page.html"))
    cards = {card["name"]: card for card in data["pictures"]}
    assert set(cards) == {"wide.png", "square.jpg", "broken.png"}
    wide = Image.open(io.BytesIO(base64.b64decode(cards["wide.png"]["thumbnail"])))
    assert (wide.width, wide.format) == (THUMBNAIL, "JPEG")
    assert cards["wide.png"]["samples"][0]["crop"][3] <= 400
    own = [data["findings"][index]["check"] for index in cards["broken.png"]["findings"]]
    assert own == ["not-a-picture", "missing-caption"]
    assert cards["broken.png"]["thumbnail"] == ""
    assert data["checks"]["not-a-picture"] == {"severity": "error", "title": "1 picture without the content of one"}


def test_the_page_fetches_nothing(photos: Path, tmp_path: Path) -> None:
    page = page_of(photos, tmp_path / "page.html")
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']""", page)
    assert "http" not in page.replace("http-equiv", "")


def test_captions_cannot_become_part_of_the_page(photos: Path, tmp_path: Path) -> None:
    page = page_of(photos, tmp_path / "page.html")
    assert "alert(1)</script>" not in page
    assert data_in(page)["pictures"][2]["caption"] == EVIL
    # The script writes text, never markup.
    assert "innerHTML" not in page


def test_thumbnails_report_their_progress(photos: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    page_of(photos, tmp_path / "page.html", events.append)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(event.done, event.total) for event in progress] == [(1, 3), (2, 3), (3, 3)]


def test_a_page_that_cannot_be_written_is_a_storage_error(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        page_of(photos, photos / "wide.png" / "page.html")
