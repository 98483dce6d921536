"""A data set that is not what the run was trained with: told picture by picture, refused, and accepted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_runs import Trained, plain_config, small_pictures, stop_after, train_in

from fluxtune.config.schema import Config
from fluxtune.errors import DataError, ExitCode, Refusal, Stopped
from fluxtune.events import Event, Finding, Step, Warning
from fluxtune.runs import Run
from fluxtune.training.resuming import settings_of
from fluxtune.training.run import train


@pytest.fixture(scope="module")
def begun(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped after the first of two steps, its pictures and its cache."""
    folder = tmp_path_factory.mktemp("begun")
    small_pictures(folder / "photos", ((128, 128), (128, 128), (160, 96), (96, 160)))
    with pytest.raises(Stopped):
        train_in(folder / "mug", settings(tiny_flux, folder), cache=folder / "cache", should_stop=stop_after(1))
    return folder


@pytest.fixture
def place(begun: Path, tmp_path: Path) -> Path:
    """A copy of it, whose pictures are to be changed; the run does not notice that they moved."""
    return Path(shutil.copytree(begun, tmp_path / "place"))


def settings(base: Path, folder: Path, row: dict[str, Any] | None = None, **changes: Any) -> Config:
    rows = [{"path": str(folder / "photos"), **(row or {})}]
    return plain_config(base, Path("unused"), dataset__folders=rows, training__steps=2, **changes)


def told(config: Config, place: Path) -> tuple[list[Finding], DataError]:
    """What is told of a resume that is refused, which leaves the run as it was."""
    run, events = place / "mug", list[Event]()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(DataError) as error:
        train(config, output=run, resume=run, on_event=events.append)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert error.value.exit_code == ExitCode.DATA
    assert "--accept changed-data" in str(error.value.hint)
    return [event for event in events if isinstance(event, Finding)], error.value


def go_on(config: Config, place: Path, **options: Any) -> Trained:
    return train_in(place / "mug", config, cache=place / "cache", resume=place / "mug", **options)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "captions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_picture_that_is_another_one_is_told(tiny_flux: Path, place: Path) -> None:
    photos = place / "photos"
    (photos / "0.png").unlink()
    (photos / "0.txt").unlink()
    Image.new("RGB", (128, 128), "green").save(photos / "1.png")
    (photos / "2.txt").write_text("a zorvex in \x1b[31mred", encoding="utf-8")
    Image.effect_noise((96, 160), 60).save(photos / "3-masklabel.png")
    Image.effect_noise((128, 128), 60).convert("RGB").save(photos / "4.png")
    (photos / "4.txt").write_text("a zorvex, new", encoding="utf-8")
    findings, error = told(settings(tiny_flux, place), place)
    assert [(each.check, each.picture) for each in findings] == [
        ("picture-changed", "1.png"),
        ("caption-changed", "2.png"),
        ("mask-changed", "3.png"),
        ("picture-added", "4.png"),
        ("picture-removed", "0.png"),
    ]
    assert findings[1].message == 'its caption was "a zorvex in place 2", is now "a zorvex in \\u001b[31mred"'
    assert error.message == (
        "the data is not what this run was trained with: 1 picture changed, 1 caption changed, 1 mask changed, "
        "1 picture added, 1 picture removed"
    )


@pytest.mark.parametrize("written", ["config.toml", "origins.json", "captions.jsonl"])
def test_killed_while_it_takes_up_accepted_data_the_next_resume_asks_nothing(
    tiny_flux: Path, place: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or after one of the files is written that say with what the run goes on."""
    (place / "photos" / "0.txt").write_text("a zorvex, new", encoding="utf-8")
    replace, kill_after = os.replace, [True]

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == written:
            if kill_after[0]:
                replace(source, target)
            raise KeyboardInterrupt
        replace(source, target)

    config, copy = settings(tiny_flux, place, {"repeats": 2}), place.with_name("copy")
    for kill_after[0] in (False, True):
        shutil.copytree(place, copy)
        run = copy / "mug"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", killed)
            train_in(run, config, cache=place / "cache", resume=run, accept=[Refusal.CHANGED_DATA])
        again = train_in(run, settings_of(run).config, cache=place / "cache", resume=run)
        assert rows_of(run)[-1]["repeats"] == settings_of(run).config.dataset.folders[0].repeats
        assert again.seen(Step)
        assert Refusal.CHANGED_DATA not in Run.open(run).state.accepted
        shutil.rmtree(copy)


def test_a_long_caption_is_told_from_where_it_changed(tiny_flux: Path, place: Path) -> None:
    begin = "a zorvex " + "and another thing " * 9
    run = place / "mug"
    rows = rows_of(run)
    rows[0]["caption"] = begin + "in blue"
    (run / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (place / "photos" / "0.txt").write_text(begin + "in red", encoding="utf-8")
    ((finding,), _) = told(settings(tiny_flux, place), place)
    assert finding.message.startswith('its caption was "...') and "in blue" in finding.message
    assert 'in red"' in finding.message and len(finding.message) < 130


def test_repeats_weight_and_kind_and_settings_of_the_data_set_are_told(tiny_flux: Path, place: Path) -> None:
    row = {"repeats": 3, "weight": 0.5}
    findings, error = told(settings(tiny_flux, place, row, dataset__resolution=[64]), place)
    assert findings[0].message == "dataset.resolution was [128], is now [64]"
    assert error.message.endswith(": 1 setting changed, 4 repeats changed, 4 weights changed")


def test_a_renamed_picture_is_told_as_such(tiny_flux: Path, place: Path) -> None:
    for ending in (".png", ".txt"):
        (place / "photos" / f"0{ending}").rename(place / "photos" / f"9{ending}")
    findings, _ = told(settings(tiny_flux, place), place)
    assert [(each.check, each.message) for each in findings] == [
        ("picture-renamed", 'it was "0.png"'),
        ("order-changed", "the pictures come in another order"),
    ]


def test_changed_data_that_is_accepted_is_trained_on_and_recorded(tiny_flux: Path, place: Path) -> None:
    (place / "photos" / "2.txt").write_text("a zorvex in a box", encoding="utf-8")
    config = settings(tiny_flux, place)
    again = go_on(config, place, accept={Refusal.CHANGED_DATA})
    assert [step.step for step in again.seen(Step)] == [2]
    assert [finding.check for finding in again.seen(Finding)] == ["caption-changed"]
    assert "finding" in {record["event"] for record in again.record()}
    rows = rows_of(place / "mug")
    assert [row.get("from_step") for row in rows].count(1) == 1
    assert [row["caption"] for row in rows if row.get("picture") == "2.png"] == [
        "a zorvex in place 2",
        "a zorvex in a box",
    ]
    # What was accepted is accepted once: the record is the new data, and further changes are refused.
    assert Run.open(place / "mug").state.accepted == []
    longer = config.model_copy(update={"training": config.training.model_copy(update={"steps": 3})})
    (place / "photos" / "1.txt").write_text("a zorvex on a box", encoding="utf-8")
    assert [finding.picture for finding in told(longer, place)[0]] == ["1.png"]


def test_data_that_moved_as_it_is_goes_on(tiny_flux: Path, place: Path) -> None:
    again = go_on(settings(tiny_flux, place), place)
    assert again.seen(Finding) == []
    assert again.file.is_file()


def test_a_run_that_recorded_less_goes_on_with_a_warning(tiny_flux: Path, place: Path) -> None:
    rows = [{key: row[key] for key in ("picture", "sha256", "caption", "source")} for row in rows_of(place / "mug")]
    (place / "mug" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    again = go_on(settings(tiny_flux, place, {"repeats": 2}), place)
    (warning,) = [each for each in again.seen(Warning) if each.where]
    assert warning.message.startswith("this run did not record masks, repeats, weights and kinds")
    assert rows_of(place / "mug")[-1]["repeats"] == 2


def test_a_run_without_any_record_of_its_data_goes_on_with_a_warning(tiny_flux: Path, place: Path) -> None:
    (place / "mug" / "captions.jsonl").unlink()
    again = go_on(settings(tiny_flux, place), place)
    assert [each.message for each in again.seen(Warning) if each.where] == [
        "this run did not record what it was trained with: whether that has changed cannot be told"
    ]


def test_pictures_that_are_gone_altogether_are_one_error(tiny_flux: Path, place: Path) -> None:
    shutil.rmtree(place / "photos")
    run = place / "mug"
    with pytest.raises(DataError, match="the pictures of this run are not there any more") as error:
        train(settings(tiny_flux, place), output=run, resume=run)
    assert f"fluxtune train FOLDER --resume {run}" in str(error.value.hint)
