"""`fluxtune validate`: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.layers import resolve
from fluxtune.dataset.findings import CHECKS

ROOT = Path(__file__).parent.parent.parent
Fluxtune = Callable[..., Any]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine different parts of real photographs with captions: nothing is wrong with them at 128 px."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "coffee", "rocket"):
        picture = Image.fromarray(getattr(skimage.data, name)())
        for part in range(3):
            left = part * 150
            picture.crop((left, 100, left + 200, 300)).save(folder / f"{name}{part}.png")
            (folder / f"{name}{part}.txt").write_text(f"part {part} of a zorvex with a {name}")
    return folder


def test_a_good_data_set_is_told_so_with_its_buckets(fluxtune: Fluxtune, photos: Path) -> None:
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--trigger", "zorvex")
    assert outcome.code == 0
    assert outcome.out.startswith(f"{photos}: 9 of 9 pictures read, checked for training at 128 px\n")
    assert "  128 x 128: 9 pictures, at most 0% cut off\n" in outcome.out
    assert outcome.out.endswith("nothing is wrong with this data set\n")


def test_errors_come_first_with_file_mend_and_exit_code(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "rocket0.png").write_bytes((photos / "rocket0.png").read_bytes()[:9000])
    (photos / "rocket1.txt").unlink()
    outcome = fluxtune("validate", "photos", "--preset", "nano")
    assert outcome.code == 3
    errors, warnings = outcome.out.index("\nerrors\n"), outcome.out.index("\nwarnings\n")
    assert (
        errors < outcome.out.index("  1 picture damaged or cut off\n    rocket0.png: the picture is damaged") < warnings
    )
    assert "    hint: save it again as PNG or JPEG, or take it out of the folder\n" in outcome.out
    assert outcome.out.index("  1 picture without a caption\n    rocket1.png: ") > warnings
    assert outcome.out.endswith("1 error, 1 warning: `fluxtune train` would refuse this data set\n")


def test_warnings_fail_only_when_strict(fluxtune: Fluxtune, photos: Path) -> None:
    shutil.copy(photos / "coffee0.png", photos / "copy.png")
    assert fluxtune("validate", "photos", "--preset", "nano").code == 0
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--strict")
    assert outcome.code == 9
    assert "copy.png: the same file as coffee0.png" in outcome.out


def test_for_programs_each_finding_is_a_line_and_the_last_line_is_the_report(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "rocket0.png").write_bytes(b"")
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--json")
    records = outcome.records()
    findings = [record for record in records if record["event"] == "finding"]
    report = records[-1]
    assert (outcome.code, report["event"], report["command"]) == (3, "result", "validate")
    assert report["data"]["counts"]["errors"] == 1
    assert [each["check"] for each in report["data"]["findings"]] == [each["check"] for each in findings]
    empty = findings[0]
    assert (empty["severity"], empty["check"], empty["picture"]) == ("error", "empty-file", "rocket0.png")
    assert empty["where"] == str(photos / "rocket0.png")
    assert {row["name"] for row in report["data"]["pictures"]} == {
        path.name for path in photos.glob("*.png") if path.name != "rocket0.png"
    }
    assert report["data"]["buckets"] == [{"width": 128, "height": 128, "samples": 8}]


def test_the_report_has_the_fields_that_its_page_documents(fluxtune: Fluxtune, photos: Path) -> None:
    page = (ROOT / "docs" / "validate.md").read_text(encoding="utf-8")
    report = fluxtune("validate", "photos", "--preset", "nano", "--json").records()[-1]["data"]
    told = set(re.findall(r"^\| `([a-z_0-9]+)`", page.split("## The report")[1], re.MULTILINE))
    assert set(report) | set(report["pictures"][0]) <= told | {"width", "height"}


def test_the_page_lists_every_check_with_its_severity() -> None:
    page = (ROOT / "docs" / "validate.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (error|warning|note) \|", page, re.MULTILINE))
    assert rows == {name: check.severity for name, check in CHECKS.items()}


def test_a_folder_that_is_not_there_is_a_data_error(fluxtune: Fluxtune) -> None:
    outcome = fluxtune("validate", "photoss")
    assert outcome.code == 3
    assert "photoss: there is no such folder" in outcome.out


def test_without_a_folder_it_says_what_it_wants(fluxtune: Fluxtune) -> None:
    outcome = fluxtune("validate")
    assert outcome.code == 2
    assert "hint: fluxtune validate photos" in outcome.err


def test_names_with_control_characters_and_markup_are_shown_harmless(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "[red]\x1b[2Jevil.png").write_bytes(b"")
    outcome = fluxtune("validate", "photos", "--preset", "nano")
    assert "[red]" in outcome.out
    assert "\x1b" not in outcome.out


def test_captions_are_counted_by_the_chosen_bases_own_tokenizers(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "rocket0.txt").write_text("a zorvex " * 20)
    outcome = fluxtune("validate", "photos", "--preset", "nano")
    assert re.search(r"rocket0\.png: \d+ tokens, T5 reads 24\n", outcome.out)


def test_without_the_bases_tokenizers_the_count_is_called_an_estimate(
    fluxtune: Fluxtune, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(photos / "no-hub"))
    (photos / "rocket0.txt").write_text("a zorvex on a rocket, " * 20)
    outcome = fluxtune("validate", "photos", "--resolution", "128")
    assert "rocket0.png: about 122 tokens, CLIP reads 77\n" in outcome.out


def test_several_folders_are_one_data_set(fluxtune: Fluxtune, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "coffee0.png", tmp_path / "more" / "again.png")
    outcome = fluxtune("validate", "photos", "more", "--preset", "nano")
    assert outcome.out.startswith(f"{photos}, {tmp_path / 'more'}: 10 of 10 pictures read")
    assert "more/again.png: the same file as photos/coffee0.png" in outcome.out
    assert "this folder is seen 1 times an epoch, another 9 times; repeats = 9 would balance them" in outcome.out


def test_fix_writes_a_copy_lists_what_was_done_and_judges_the_copy(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "rocket0.png").rename(photos / "rocket0.jpg")
    shutil.copy(photos / "coffee0.png", photos / "copy.png")
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--strict", "--fix", "mended")
    assert outcome.code == 0
    assert "1 error, 2 warnings: `fluxtune train` would refuse this data set" in outcome.out
    assert "  rocket0.png: extension of PNG given\n" in outcome.out
    assert "  .set-aside/duplicates/copy.png: set aside: the same file as coffee0.png\n" in outcome.out
    assert outcome.out.endswith("nothing is wrong with this data set\n")
    assert (photos.parent / "mended" / "rocket0.png").exists()


def test_fix_tells_programs_what_was_done_and_what_is_left(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "rocket0.png").write_bytes(b"")
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--fix", "mended", "--json")
    data = outcome.records()[-1]["data"]
    assert (outcome.code, data["counts"]["errors"], data["mended"]["counts"]["errors"]) == (0, 1, 0)
    assert data["mends"] == [
        {
            "source": str(photos / "rocket0.png"),
            "target": ".set-aside/unreadable/rocket0.png",
            "done": ["set aside: the file is empty (0 bytes)"],
        }
    ]


def test_fix_refuses_a_destination_that_is_there(fluxtune: Fluxtune, photos: Path) -> None:
    (photos.parent / "mended").mkdir()
    (photos.parent / "mended" / "a.txt").write_text("mine")
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--fix", "mended")
    assert (outcome.code, outcome.out) == (2, "")
    assert "mended: this is there already" in outcome.err


def test_report_writes_a_page_and_says_where(fluxtune: Fluxtune, photos: Path) -> None:
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--report", "page.html")
    assert "\npage.html: every picture with its crop and its problems\n" in outcome.out
    assert "rocket2.png" in (photos.parent / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["--report", "--fix"])
@pytest.mark.parametrize("place", ["photos", "photos/rocket0.png/there", "/proc/there", "/dev/null"])
def test_what_cannot_be_written_at_the_end_is_refused_before_a_picture_is_read(
    fluxtune: Fluxtune, photos: Path, option: str, place: str
) -> None:
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--json", option, place)
    (error,) = map(json.loads, outcome.out.splitlines())
    assert (error["event"], outcome.code) == ("error", error["code"])
    assert outcome.code in (2, 6)
    assert error["hint"] and place.split("/there")[0] in error["where"]


def test_a_page_may_go_into_the_repaired_copy(fluxtune: Fluxtune, photos: Path, tmp_path: Path) -> None:
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--fix", "mended", "--report", "mended/page.html")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "mended" / "page.html").is_file() and (tmp_path / "mended" / "rocket0.png").is_file()


def test_missing_captions_are_said_to_be_wanted_before_training(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "rocket1.txt").unlink()
    outcome = fluxtune("validate", "photos", "--preset", "nano")
    assert outcome.code == 0
    assert outcome.out.endswith("0 errors, 1 warning: `fluxtune train` wants the captions first\n")


def test_captions_that_train_makes_itself_are_not_said_to_be_wanted(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "rocket1.txt").unlink()
    outcome = fluxtune("validate", "photos", "--preset", "nano", "--set", "dataset.missing_captions=caption")
    assert outcome.out.endswith("0 errors, 1 warning: it can be trained on\n")
    assert "hint: `fluxtune train` asks captioning.captioner for it; to look at it first: " in outcome.out


def test_captions_for_which_the_trigger_stands_in_are_not_said_to_be_wanted(fluxtune: Fluxtune, photos: Path) -> None:
    (photos / "rocket1.txt").unlink()
    arguments = ("--trigger", "zorvex", "--set", "dataset.missing_captions=trigger")
    outcome = fluxtune("validate", "photos", "--preset", "nano", *arguments)
    assert outcome.out.endswith(": it can be trained on\n")
    assert "hint: `fluxtune train` takes the trigger word alone for it; " in outcome.out


def test_the_repaired_copy_keeps_what_is_said_of_its_folders(fluxtune: Fluxtune, photos: Path) -> None:
    (photos.parent / "others").mkdir()
    (photos / "coffee2.png").rename(photos.parent / "others" / "coffee2.png")
    (photos / "coffee2.txt").rename(photos.parent / "others" / "coffee2.txt")
    rows = "dataset.folders=[{path='photos', repeats=3}, {path='others', kind='regularization', weight=0.5}]"
    outcome = fluxtune("validate", "--preset", "nano", "--set", rows, "--fix", "mended", "--json")
    mended = outcome.records()[-1]["data"]["mended"]
    assert {(Path(row["path"]).parent.name, row["repeats"]) for row in mended["pictures"]} == {
        ("photos", 3),
        ("others", 1),
    }
    (row, other) = resolve_folder(photos.parent / "mended")
    assert (row.repeats, other.kind, other.weight) == (3, "regularization", 0.5)


def resolve_folder(folder: Path) -> list[FolderConfig]:
    """The rows that a folder comes to."""
    flags: dict[str, tuple[str, object]] = {"dataset.folders": ("FOLDER", [{"path": str(folder)}])}
    return resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=folder).config.dataset.folders


def test_a_file_of_another_trainer_works_like_a_folder_and_says_what_it_cannot_take_over(
    fluxtune: Fluxtune, photos: Path
) -> None:
    config = "datasets:\n  - folder_path: photos\n    resolution: 128\n    shuffle_tokens: true\n    num_workers: 2\n"
    (photos.parent / "set.yaml").write_text(config)
    outcome = fluxtune("validate", "set.yaml", "--base", "nano")
    assert outcome.out.startswith(f"{photos}: 9 of 9 pictures read, checked for training at 128 px\n")
    assert "set.yaml:4: shuffle_tokens = true: captions keep their order here\n" in outcome.out
    assert "set.yaml:5: no matter here: num_workers\n" in outcome.out


def test_a_mistake_in_a_file_of_another_trainer_is_a_configuration_error(fluxtune: Fluxtune, photos: Path) -> None:
    (photos.parent / "set.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 5\n")
    outcome = fluxtune("validate", "set.toml")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: set.toml:3: image_dir is 5: wanted text\n")
