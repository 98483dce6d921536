"""Data sets that another trainer's file describes: what each key becomes, and that none is dropped in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fluxtune.config.dataset import FolderConfig
from fluxtune.config.descriptions import ai_toolkit, kohya, onetrainer, simpletuner
from fluxtune.config.layers import Resolved, resolve
from fluxtune.errors import ConfigError, UsageError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two folders of pictures and one of masks in it."""
    for name in ("photos", "others", "masks"):
        (tmp_path / name).mkdir()
    return tmp_path


def read(place: Path, name: str, text: str, config: str = "", **row: object) -> Resolved:
    """The configuration with a description as its one row."""
    file = place / name
    file.write_text(text, encoding="utf-8")
    (place / "mine.toml").write_text(config)
    rows = [{"path": str(file), **row}]
    return resolve(
        preset=None,
        config_file=Path("mine.toml"),
        flags={"dataset.folders": ("FOLDER", rows)},
        sets=[],
        working_folder=place,
    )


def refused(place: Path, name: str, text: str) -> list[tuple[str | None, str]]:
    """(line, message) of what a description is refused for."""
    with pytest.raises(ConfigError) as caught:
        read(place, name, text)
    return [((each.where or "").removeprefix(str(place / name)), each.message) for each in caught.value.problems]


def said(resolved: Resolved) -> dict[str, str]:
    """Message -> line and severity of what was not taken over."""
    return {each.message: f"{each.where.rpartition(':')[2]} {each.severity}" for each in resolved.remarks}


KOHYA = """\
[general]
caption_extension = ".txt"
keep_tokens = 0

[[datasets]]
resolution = 512
enable_bucket = true
batch_size = 4

  [[datasets.subsets]]
  image_dir = "photos"
  class_tokens = "zorvex dog"
  num_repeats = 3
  caption_prefix = "a drawing,"
  conditioning_data_dir = "masks"

  [[datasets.subsets]]
  image_dir = "others"
  is_reg = true
"""


def test_kohyas_subsets_become_rows_with_what_general_and_their_dataset_say(place: Path) -> None:
    resolved = read(place, "set.toml", KOHYA)
    common: dict[str, Any] = dict(captions=".txt", caption_lines="first", nested=False, folder_names=False)
    assert resolved.config.dataset.folders == [
        FolderConfig(
            path=str(place / "photos"), repeats=3, masks=str(place / "masks"), default_caption="zorvex dog",
            caption_prefix="a drawing,", **common,
        ),
        FolderConfig(path=str(place / "others"), kind="regularization", masks="none", **common),
    ]  # fmt: skip
    assert resolved.config.dataset.resolution == [512]
    assert resolved.config.dataset.buckets is True


def test_shared_settings_name_the_line_they_come_from(place: Path) -> None:
    resolved = read(place, "set.toml", KOHYA)
    assert resolved.origins["dataset.buckets"] == f"{place / 'set.toml'}:7"
    assert resolved.origins["dataset.folders"] == "FOLDER"


def test_the_users_own_settings_lie_above_those_of_the_data_set(place: Path) -> None:
    resolved = read(place, "set.toml", KOHYA, "[dataset]\nresolution = 768\n")
    assert resolved.config.dataset.resolution == [768]
    assert resolved.origins["dataset.resolution"] == "mine.toml:2"


def test_kohyas_caption_extension_is_caption_unless_it_is_given(place: Path) -> None:
    resolved = read(place, "set.toml", '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "photos"\n')
    assert resolved.config.dataset.folders[0].captions == ".caption"


def test_a_folder_that_kohya_lists_once_for_each_resolution_is_one_row(place: Path) -> None:
    each = '[[datasets]]\nresolution = {}\n[[datasets.subsets]]\nimage_dir = "photos"\n'
    resolved = read(place, "set.toml", each.format(512) + each.format("[768, 768]"))
    assert resolved.config.dataset.resolution == [512, 768]
    assert len(resolved.config.dataset.folders) == 1
    assert said(resolved) == {}


def test_keys_of_kohya_without_a_counterpart_are_named_with_their_lines(place: Path) -> None:
    text = KOHYA.replace("keep_tokens = 0", "keep_tokens = 2").replace("num_repeats", "random_crop = true\nnum_repeats")
    told = said(read(place, "set.toml", text + "  wat = 1\n"))
    assert told["keep_tokens = 2: captions keep their order here"] == "3 warning"
    assert told["random_crop = true: dataset.crops trains on several crops of each picture"] == "13 warning"
    assert told["wat has no counterpart here, and is not taken over"] == "21 warning"
    assert told["no matter here: batch_size"] == "8 note"


def test_what_differs_from_folder_to_folder_and_is_one_for_all_here_is_said(place: Path) -> None:
    resolved = read(place, "set.toml", KOHYA.replace("num_repeats = 3", "flip_aug = true"))
    message = "differs from folder to folder; here dataset.flip is one for all, and is not set by this"
    assert said(resolved)[message] == "13 warning"
    assert resolved.config.dataset.flip is False


def test_all_mistakes_of_a_description_are_told_at_once_each_with_its_line(place: Path) -> None:
    text = KOHYA.replace("num_repeats = 3", 'num_repeats = "3"').replace('image_dir = "others"', "")
    assert refused(place, "set.toml", text) == [
        (":13", 'num_repeats is "3": wanted a whole number'),
        (":17", "a subset has no image_dir"),
    ]


def test_kohyas_metadata_files_are_refused_with_what_to_do(place: Path) -> None:
    ((line, message),) = refused(place, "set.toml", KOHYA.replace("is_reg = true", 'metadata_file = "md.json"'))
    assert (line, message) == (":19", "captions in kohya's metadata files are not read")


AI_TOOLKIT = """\
job: extension
config:
  name: mine
  process:
    - type: sd_trainer
      trigger_word: zorvex
      train: {reg_weight: 0.5}
      datasets:
        - folder_path: photos
          mask_path: masks
          mask_min_value: 0.2
          caption_ext: txt
          default_caption: "[trigger]"
          caption_dropout_rate: 0.1
          num_repeats: 2
          loss_multiplier: 2
          flip_x: true
          cache_latents_to_disk: true
          resolution: [512, 768]
        - folder_path: others
          is_reg: true
          caption_dropout_rate: 0.1
          flip_x: true
          resolution: [512, 768]
"""


def test_ai_toolkits_datasets_become_rows_and_its_trigger_ours(place: Path) -> None:
    resolved = read(place, "set.yaml", AI_TOOLKIT)
    dataset = resolved.config.dataset
    assert dataset.folders == [
        FolderConfig(
            path=str(place / "photos"), repeats=2, weight=2.0, masks=str(place / "masks"), captions=".txt",
            default_caption="[trigger]", folder_names=False,
        ),
        FolderConfig(
            path=str(place / "others"), kind="regularization", weight=0.5, masks="none", captions=".txt",
            folder_names=False,
        ),
    ]  # fmt: skip
    assert (dataset.trigger, dataset.flip, dataset.caption_dropout) == ("zorvex", True, 0.1)
    assert (dataset.resolution, dataset.unmasked_weight) == ([512, 768], 0.2)
    assert resolved.origins["dataset.trigger"] == f"{place / 'set.yaml'}:6"
    assert said(resolved) == {"no matter here: cache_latents_to_disk": "18 note"}


def test_a_list_of_datasets_alone_is_read_too(place: Path) -> None:
    resolved = read(place, "set.yml", "datasets:\n  - {folder_path: photos, shuffle_tokens: true}\n")
    assert resolved.config.dataset.folders[0].path == str(place / "photos")
    assert said(resolved) == {"shuffle_tokens = true: captions keep their order here": "2 warning"}


def test_an_inverted_mask_is_refused_for_it_would_teach_the_opposite(place: Path) -> None:
    text = AI_TOOLKIT.replace("num_repeats: 2", "invert_mask: true")
    assert refused(place, "set.yaml", text) == [(":15", "masks are white where is learned; invert_mask is not read")]


def test_triggers_that_differ_are_said(place: Path) -> None:
    text = "datasets:\n" + "".join(
        f"  - {{folder_path: {name}, trigger_word: {name}x}}\n" for name in ("photos", "others")
    )
    resolved = read(place, "set.yaml", text)
    assert resolved.config.dataset.trigger is None
    message = "differs from folder to folder; here dataset.trigger is one for all, and is not set by this"
    assert said(resolved)[message] == "2 warning"


SIMPLETUNER: list[dict[str, Any]] = [
    {
        "id": "subject", "type": "local", "instance_data_dir": "photos", "caption_strategy": "textfile",
        "prepend_instance_prompt": True, "instance_prompt": "zorvex,", "repeats": 2, "resolution": 1.05,
        "resolution_type": "area", "crop": True, "crop_style": "center", "crop_aspect": "square",
        "conditioning_data": "focus", "cache_dir_vae": "/cache",
    },
    {"id": "focus", "type": "local", "dataset_type": "conditioning", "conditioning_type": "mask",
     "instance_data_dir": "masks"},
    {"id": "rest", "type": "local", "instance_data_dir": "others", "caption_strategy": "filename",
     "is_regularisation_data": True, "resolution": 1024, "resolution_type": "pixel_area", "crop": True,
     "crop_aspect": "square"},
    {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "/cache"},
]  # fmt: skip


def test_simpletuners_backends_become_rows_whose_repeats_count_the_first_time_too(place: Path) -> None:
    resolved = read(place, "set.json", json.dumps(SIMPLETUNER, indent=1))
    assert resolved.config.dataset.folders == [
        FolderConfig(
            path=str(place / "photos"), repeats=3, masks=str(place / "masks"), captions=".txt",
            caption_prefix="zorvex,", caption_lines="first", folder_names=False,
        ),
        FolderConfig(
            path=str(place / "others"), kind="regularization", masks="none", captions="names", folder_names=False
        ),
    ]  # fmt: skip
    assert (resolved.config.dataset.resolution, resolved.config.dataset.buckets) == ([1024], False)
    assert said(resolved) == {
        "of a caption file with several lines the first counts here, and one by chance there": "6 note",
        "no matter here: cache_dir_vae": "16 note",
        "no matter here: cache_dir": "41 note",
        "these are trained on as they are; the base model's output is kept by training.preservation here": "30 note",
    }


ONETRAINER = [
    {
        "name": "dog",
        "path": "photos",
        "balancing": 2.6,
        "loss_weight": 0.5,
        "image": {"enable_random_flip": True, "enable_random_rotate": True, "enable_resolution_override": True,
                  "resolution_override": "512, 768x1024"},
        "text": {"prompt_source": "filename", "enable_tag_shuffling": True},
    },
    {"path": "others", "type": "PRIOR_PREDICTION", "include_subdirectories": True,
     "image": {"enable_random_flip": True}, "text": {"prompt_source": "sample"}},
    {"path": "masks", "enabled": False},
    {"path": "masks", "type": "VALIDATION"},
]  # fmt: skip


def test_onetrainers_concepts_become_rows_with_their_sources_of_prompts(place: Path) -> None:
    resolved = read(place, "concepts.json", json.dumps(ONETRAINER, indent=1))
    one, two = resolved.config.dataset.folders
    assert (one.repeats, one.weight, one.captions, one.nested) == (3, 0.5, "names", False)
    assert (two.path, two.captions, two.caption_lines, two.nested) == (str(place / "others"), ".txt", "first", True)
    assert (resolved.config.dataset.flip, resolved.config.dataset.resolution) == (True, [512, 880])
    told = said(resolved)
    assert {message: line.split()[1] for message, line in told.items()} == {
        "2.6 repeats become 3": "warning",
        "enable_tag_shuffling = true: captions keep their order here": "warning",
        "enable_random_rotate = true: pictures are not turned here": "warning",
        "768 x 1024 becomes the square with as many pixels: buckets keep shapes": "warning",
        "a resolution of 887 px becomes 880": "warning",
        'a concept of type "PRIOR_PREDICTION" is trained on as it is; see training.preservation': "warning",
        "the resolutions differ from folder to folder; here all are trained at [512, 880]": "warning",
        "a concept that is not enabled is left out": "note",
        "pictures for validation alone are left out": "warning",
        "no matter here: name": "note",
    }


def test_a_filter_of_captions_is_warned_of(place: Path) -> None:
    text = {**SIMPLETUNER[3], "caption_filter_list": "filter.txt"}
    told = said(read(place, "set.json", json.dumps([SIMPLETUNER[2], text])))
    assert told['caption_filter_list = "filter.txt": captions are taken as they are'] == "1 warning"


def test_one_prompt_for_all_is_the_caption_of_every_picture(place: Path) -> None:
    backend = {**SIMPLETUNER[2], "caption_strategy": "instanceprompt", "instance_prompt": "a dog"}
    (row,) = read(place, "set.json", json.dumps([backend])).config.dataset.folders
    assert (row.captions, row.default_caption) == ("none", "a dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "aws"}, 'a data set of type "aws" is not on this machine'),
        ({"caption_strategy": "parquet"}, 'captions by the strategy "parquet" are not read'),
        ({"instance_data_dir": ""}, "a data set has no instance_data_dir"),
        ({"repeats": "2"}, 'repeats is "2": wanted a whole number'),
    ],
)
def test_backends_that_cannot_be_read_are_refused(place: Path, change: dict[str, object], message: str) -> None:
    ((_, seen),) = refused(place, "set.json", json.dumps([{**SIMPLETUNER[2], **change}]))
    assert seen == message


def test_json_that_is_indented_with_tabs_has_lines_too(place: Path) -> None:
    text = json.dumps([{**SIMPLETUNER[2], "wat": 1}], indent="\t")
    assert said(read(place, "set.json", text))["wat has no counterpart here, and is not taken over"] == "12 warning"


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("set.toml", "[[datasets]\n", ":1", "not valid TOML: "),
        ("set.json", '[\n  {"id": }\n]', ":2", "not valid JSON: "),
        ("set.yaml", "datasets:\n  - folder_path: [\n", ":3", "not valid YAML: "),
        ("set.yaml", "a: &a [*a]\n", "", "there are no datasets in it"),
        ("set.yaml", "- 1\n", "", "there are no datasets in it"),
        ("set.yaml", "datasets: !!python/object:os.system []\n", ":1", "not valid YAML: "),
        ("set.toml", "[training]\nsteps = 5\n", "", "this TOML describes no data set"),
        ("set.json", "[]", "", "no folder of pictures is named"),
    ],
)
def test_what_is_no_description_is_a_configuration_error(
    place: Path, name: str, text: str, line: str, message: str
) -> None:
    ((seen, told),) = refused(place, name, text)
    assert (seen, told[: len(message)]) == (line, message)


ODD = [
    "~nobody/photos",
    None,
    "",
    "x\0y",
    "\ud83d",
    -1,
    0,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    True,
    [],
    {},
    [{}],
    [[1]],
    {"a": 1},
]


def changed_somewhere(value: Any, odd: object) -> Iterator[Any]:
    """The value with each part of it replaced, one after the other."""
    yield odd
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(parts):
        for other in changed_somewhere(inner, odd):
            copy = value.copy()
            copy[key] = other
            yield copy


@pytest.mark.parametrize("odd", ODD, ids=[ascii(odd)[:20] for odd in ODD])
def test_whatever_stands_in_a_description_it_is_read_or_refused(place: Path, odd: object) -> None:
    job = {"config": {"process": [{"trigger_word": "z", "train": {"reg_weight": 1}, "datasets": [
        {"folder_path": "photos", "resolution": [512], "mask_path": "masks", "loss_multiplier": 1.0, "flip_x": True,
         "caption_ext": "txt", "num_repeats": 2, "mask_min_value": 0.1, "wat": 1}]}]}}  # fmt: skip
    for whole in (job, SIMPLETUNER):
        for content in changed_somewhere(whole, odd):
            with suppress(UsageError):
                read(place, "set.json", json.dumps(content))


def test_a_number_without_end_is_a_configuration_error(place: Path) -> None:
    ((_, message),) = refused(place, "set.json", f'[{{"repeats": {"9" * 5000}}}]')
    assert message.startswith("not valid JSON: ")


def test_the_page_on_data_sets_has_every_key_that_is_looked_at() -> None:
    root = Path(__file__).parent.parent.parent
    page = (root / "docs" / "datasets.md").read_text(encoding="utf-8")
    for reader, module in (("kohya", kohya), ("ai_toolkit", ai_toolkit), ("simpletuner", simpletuner)):
        source = (root / "fluxtune" / "config" / "descriptions" / f"{reader}.py").read_text(encoding="utf-8")
        taken = re.findall(r"""(?:take|tables)\("([a-z_0-9]+)\"""", source)
        for key in {*taken, *module._OTHERWISE, *module._TECHNICAL}:
            assert f"`{key}`" in page, f"{key} of {reader}"
    for key in {*onetrainer._OF_PICTURES, *onetrainer._OF_CAPTIONS, *onetrainer._TECHNICAL}:
        assert re.search(rf"`([a-z]+\.)?{key}`", page), f"{key} of onetrainer"


def test_repeats_and_weight_of_the_row_multiply_with_those_of_the_file(place: Path) -> None:
    resolved = read(place, "set.yaml", AI_TOOLKIT, repeats=2, weight=0.5)
    assert [(row.repeats, row.weight) for row in resolved.config.dataset.folders] == [(4, 1.0), (2, 0.25)]


def test_repeats_that_multiply_beyond_the_range_are_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.folders\.repeats is 2000"):
        read(place, "set.yaml", AI_TOOLKIT, repeats=1000)


def test_a_folder_may_hold_settings_of_its_own(place: Path) -> None:
    (place / "photos" / "dataset.toml").write_text('[dataset]\ntrigger = "zorvex"\n')
    flags: dict[str, tuple[str, object]] = {"dataset.folders": ("FOLDER", [{"path": "photos", "repeats": 2}])}
    resolved = resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=place)
    assert resolved.config.dataset.folders == [FolderConfig(path=str(place / "photos"), repeats=2)]
    assert resolved.config.dataset.trigger == "zorvex"
    assert resolved.origins["dataset.trigger"] == "photos/dataset.toml:2"


def test_the_settings_in_a_folder_are_read_once_when_they_are_the_users_own(place: Path) -> None:
    (place / "photos" / "dataset.toml").write_text('[[dataset.folders]]\npath = "."\nrepeats = 3\n')
    resolved = resolve(preset=None, config_file=Path("photos/dataset.toml"), flags={}, sets=[], working_folder=place)
    assert [row.repeats for row in resolved.config.dataset.folders] == [3]


def test_another_trainers_file_in_a_folder_is_not_taken_but_told(place: Path) -> None:
    (place / "photos" / "dataset.toml").write_text(KOHYA)
    flags: dict[str, tuple[str, object]] = {"dataset.folders": ("FOLDER", [{"path": "photos"}])}
    resolved = resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=place)
    assert resolved.config.dataset.folders == [FolderConfig(path=str(place / "photos"))]
    assert "it is another trainer's: give the file itself to train by it" in [each.message for each in resolved.remarks]


def test_what_stands_beside_a_description_completes_it(place: Path) -> None:
    rest = '[dataset]\nclass_word = "dog"\n[[dataset.folders]]\npath = "photos"\nweight = 0.5\nmasks = "masks"\n'
    (place / "set.fluxtune.toml").write_text(rest)
    resolved = read(place, "set.toml", KOHYA)
    assert resolved.config.dataset.class_word == "dog"
    assert [row.weight for row in resolved.config.dataset.folders] == [0.5, 1.0]
    assert resolved.config.dataset.folders[0].masks == str(place / "masks")


def test_paths_of_another_machine_are_looked_for_beside_the_file(place: Path) -> None:
    resolved = read(place, "set.yaml", "datasets:\n  - folder_path: 'C:\\data\\photos'\n")
    assert resolved.config.dataset.folders[0].path == str(place / "photos")


def test_what_stands_beside_a_description_is_about_its_folders_alone(place: Path) -> None:
    (place / "set.fluxtune.toml").write_text('[[dataset.folders]]\npath = "phots"\nweight = 0.5\n')
    with pytest.raises(ConfigError) as caught:
        read(place, "set.toml", KOHYA)
    (problem,) = caught.value.problems
    assert problem.where == f"{place / 'set.fluxtune.toml'}:2"
    assert problem.message == f"phots is no folder of {place / 'set.toml'}"


def test_settings_beside_a_description_name_their_own_line(place: Path) -> None:
    (place / "set.fluxtune.toml").write_text('[dataset]\nclass_word = "dog"\n')
    resolved = read(place, "set.toml", KOHYA)
    assert resolved.origins["dataset.class_word"] == f"{place / 'set.fluxtune.toml'}:2"
    assert resolved.described["class_word"] == "dog"


def test_one_folder_may_be_listed_twice_in_two_ways(place: Path) -> None:
    (place / "set.fluxtune.toml").write_text('[[dataset.folders]]\npath = "photos"\nweight = 0.5\n')
    each = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "photos"\ncaption_prefix = "{}"\n'
    resolved = read(place, "set.toml", each.format("a") + each.format("b"))
    assert [(row.caption_prefix, row.weight) for row in resolved.config.dataset.folders] == [("a", 0.5), ("b", 0.5)]


def test_kohyas_description_may_be_json(place: Path) -> None:
    text = json.dumps({"datasets": [{"resolution": 512, "subsets": [{"image_dir": "photos", "num_repeats": 3}]}]})
    (row,) = read(place, "set.json", text).config.dataset.folders
    assert (row.path, row.repeats, row.captions) == (str(place / "photos"), 3, ".caption")


def test_of_two_subsets_of_one_folder_kohya_takes_the_first_and_that_is_said(place: Path) -> None:
    each = '[[datasets.subsets]]\nimage_dir = "photos"\nnum_repeats = {}\n'
    resolved = read(place, "set.toml", "[[datasets]]\n" + each.format(2) + each.format(5))
    assert [row.repeats for row in resolved.config.dataset.folders] == [2]
    assert said(resolved)["of the subsets of a dataset with one image_dir the first counts"] == "6 warning"


@pytest.mark.parametrize("ending", ["txt", "none", "names"])
def test_a_caption_extension_without_a_dot_is_refused(place: Path, ending: str) -> None:
    text = f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "photos"\ncaption_extension = "{ending}"\n'
    assert refused(place, "set.toml", text) == [
        (":4", f'caption_extension is "{ending}": wanted an ending with its dot')
    ]


def test_a_folder_that_is_listed_twice_at_one_resolution_counts_twice(place: Path) -> None:
    each = "  - folder_path: photos\n    resolution: [512, 768]\n"
    resolved = read(place, "set.yaml", "datasets:\n" + each + each)
    assert [row.path for row in resolved.config.dataset.folders] == [str(place / "photos")] * 2
    assert resolved.config.dataset.resolution == [512, 768]


def test_an_empty_trigger_word_is_none(place: Path) -> None:
    text = "config:\n  process:\n  - trigger_word: ''\n    datasets:\n    - folder_path: photos\n"
    assert read(place, "set.yaml", text).config.dataset.trigger is None


def test_only_what_calls_itself_masks_is_taken_for_masks(place: Path) -> None:
    photos = {"id": "a", "instance_data_dir": "photos", "caption_strategy": "textfile", "conditioning_data": "m"}
    edges = {"id": "m", "dataset_type": "conditioning", "instance_data_dir": "masks"}
    resolved = read(place, "set.json", json.dumps([photos, edges]))
    assert [row.masks for row in resolved.config.dataset.folders] == ["none"]
    assert any("only masks are read" in message for message in said(resolved))


def test_pictures_without_an_id_are_not_taken_for_masks_without_one(place: Path) -> None:
    photos = {"instance_data_dir": "photos", "caption_strategy": "textfile"}
    masks = {"dataset_type": "conditioning", "conditioning_type": "mask", "instance_data_dir": "masks"}
    resolved = read(place, "set.json", json.dumps([photos, masks]))
    assert [row.path for row in resolved.config.dataset.folders] == [str(place / "photos")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("!!bool maybe", 'not valid YAML: "maybe" is no bool'),
        ("!!int ''", 'not valid YAML: "" is no int'),
        ("!!float ''", 'not valid YAML: "" is no float'),
        ("!!timestamp soon", 'not valid YAML: "soon" is no timestamp'),
        ("2024-13-45", 'not valid YAML: "2024-13-45" is no timestamp'),
        ("\x7f", "not valid YAML: a character that may not stand there (0x7f)"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML: could not determine a constructor"),
    ],
)
def test_what_yaml_makes_of_a_value_and_cannot_is_said_with_its_line(place: Path, value: str, message: str) -> None:
    ((line, told),) = refused(place, "set.yaml", f"datasets:\n - folder_path: photos\n   wat: {value}\n")
    assert line == ":3"
    assert told.startswith(message)


def test_merges_of_merges_stay_small(place: Path) -> None:
    bomb = "a0: &a0 {k: 1, l: 2, m: 3}\n" + "".join(
        f"a{number}: &a{number} {{<<: [{', '.join([f'*a{number - 1}'] * 9)}]}}\n" for number in range(1, 20)
    )
    resolved = read(place, "set.yaml", bomb + "datasets:\n - {<<: *a19, folder_path: photos}\n")
    assert len(resolved.config.dataset.folders) == 1


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("set.yaml", "datasets:\n - folder_path: photos\n   folder_path: others\n", ":3"),
        ("set.json", '[{"instance_data_dir": "photos",\n"instance_data_dir": "others"}]', ":2"),
    ],
)
def test_a_key_that_is_set_twice_is_refused(place: Path, name: str, text: str, line: str) -> None:
    ((where, message),) = refused(place, name, text)
    assert (where, message.endswith("is set twice")) == (line, True)


@pytest.mark.parametrize("name", ["set.json", "set.yaml", "set.toml"])
def test_a_file_that_is_too_large_for_a_description_is_refused(place: Path, name: str) -> None:
    (place / name).write_text(json.dumps({"1.png": "a dog " * 200_000}))
    with pytest.raises(UsageError, match="too large for a description of a data set"):
        resolve(
            preset=None,
            config_file=None,
            flags={"dataset.folders": ("FOLDER", [{"path": name}])},
            sets=[],
            working_folder=place,
        )


def test_a_path_that_is_longer_than_any_is_no_folder(place: Path) -> None:
    longest = "x" * 5000
    resolved = read(place, "set.yaml", f"datasets:\n - {{folder_path: {longest}, mask_path: {longest}}}\n")
    (row,) = resolved.config.dataset.folders
    assert (row.path, row.masks) == (str(place / longest), str(place / longest))


@pytest.mark.parametrize("value", ["[" * 3000 + "]" * 3000, "9" * 5000])
def test_a_folders_own_settings_that_no_parser_takes_are_a_configuration_error(place: Path, value: str) -> None:
    (place / "photos" / "dataset.toml").write_text(f"[dataset]\ntrigger = {value}\n")
    flags: dict[str, tuple[str, object]] = {"dataset.folders": ("FOLDER", [{"path": "photos"}])}
    with pytest.raises(UsageError, match="not valid TOML"):
        resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=place)


def test_half_a_letter_is_no_text(place: Path) -> None:
    text = '[{"instance_data_dir": "photos", "caption_strategy": "instanceprompt",\n"instance_prompt": "\\ud800"}]'
    ((line, message),) = refused(place, "set.json", text)
    assert (line, message.partition(" ")[0]) == (":2", "instance_prompt")


def test_settings_of_a_folder_that_another_file_describes_are_not_read_and_that_is_said(place: Path) -> None:
    (place / "photos" / "dataset.toml").write_text('[dataset]\ntrigger = "zorvex"\n')
    resolved = read(place, "set.toml", KOHYA)
    assert resolved.config.dataset.trigger is None
    (told,) = [each for each in resolved.remarks if each.where == str(place / "photos" / "dataset.toml")]
    assert told.message == f"it is not read: {place / 'set.toml'} describes the folder"


def test_a_description_that_names_a_file_is_refused_with_its_line(place: Path) -> None:
    text = '[dataset]\ntrigger = "zorvex"\n[[dataset.folders]]\npath = "set.toml"\n'
    assert refused(place, "set.toml", text) == [(":4", "set.toml is a file: wanted a folder")]
