from __future__ import annotations

from pathlib import Path

import pytest

from fluxtune.config.documents import Layer
from fluxtune.config.layers import Resolved, resolve, to_toml
from fluxtune.config.memory import MemoryConfig
from fluxtune.config.presets import listing
from fluxtune.errors import ConfigError

MEMORY = ", ".join(sorted(MemoryConfig.model_fields, key=lambda name: name == "keep"))


def resolved(
    folder: Path,
    toml: str | None = None,
    preset: str | None = None,
    flags: dict[str, tuple[str, object]] | None = None,
    sets: list[str] | None = None,
) -> Resolved:
    if toml is not None:
        (folder / "fluxtune.toml").write_text(toml, encoding="utf-8")
    return resolve(preset=preset, config_file=None, flags=flags or {}, sets=sets or [], working_folder=folder)


def problems(folder: Path, **layers: object) -> list[tuple[str | None, str, str | None]]:
    with pytest.raises(ConfigError) as caught:
        resolved(folder, **layers)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    return [(problem.where, problem.message, problem.hint) for problem in caught.value.problems]


def test_each_layer_overrides_those_below_and_every_value_knows_its_origin(tmp_path: Path) -> None:
    made = resolved(
        tmp_path,
        "[training]\nsteps = 30\nseed = 7\n[lora]\nrank = 3\n",
        preset="24gb",
        flags={"training.steps": ("--steps", 40)},
        sets=["lora.rank=5"],
    )
    assert made.config.memory.base_precision == "int8"
    assert made.origins["memory.base_precision"].startswith("preset 24gb (24gb.toml:")
    assert (made.config.training.seed, made.origins["training.seed"]) == (7, "fluxtune.toml:3")
    assert (made.config.training.steps, made.origins["training.steps"]) == (40, "--steps")
    assert (made.config.lora.rank, made.origins["lora.rank"]) == (5, "--set")
    assert made.origins["lora.dropout"] == "default"


def test_an_explicit_config_file_takes_the_place_of_the_one_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("lora.rank = 9\n", encoding="utf-8")
    (tmp_path / "fluxtune.toml").write_text("lora.alpha = 2.0\n", encoding="utf-8")
    made = resolve(preset=None, config_file=Path("other.toml"), flags={}, sets=[], working_folder=tmp_path)
    assert (made.config.lora.rank, made.config.lora.alpha) == (9, None)
    assert made.origins["lora.rank"] == "other.toml:1"


def test_a_list_replaces_the_list_below_it(tmp_path: Path) -> None:
    made = resolved(tmp_path, 'previews.prompts = ["a", "b"]\n', sets=['previews.prompts=["c"]'])
    assert made.config.previews.prompts == ["c"]


@pytest.mark.parametrize("preset", [preset.name for preset in listing()])
def test_the_resolved_configuration_reads_back_equal(tmp_path: Path, preset: str) -> None:
    odd = 'name = "a b"\n[dataset]\ntrigger = "zor\\"vex # é"\n[[dataset.folders]]\npath = "x y"\nrepeats = 2\n'
    config = resolved(tmp_path, odd, preset=preset, sets=["lora.targets=['a.*', 'b']", "lora.alpha=8"]).config
    file = tmp_path / "again.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    again = resolve(preset=None, config_file=file, flags={}, sets=[], working_folder=Path("/"))
    assert again.config == config


def test_the_embedded_model_without_pictures_learns_the_demo_data_set(tmp_path: Path) -> None:
    made = resolved(tmp_path, preset="nano")
    assert [folder.path for folder in made.config.dataset.folders] == ["nano:demo"]
    assert made.config.dataset.trigger == "zorvex"
    assert made.origins["dataset.trigger"].startswith("demo data set (dataset.toml:")


@pytest.mark.parametrize("how", ["flag", "file"])
def test_the_embedded_model_without_a_preset_takes_its_own(tmp_path: Path, how: str) -> None:
    flags: dict[str, tuple[str, object]] = {"model.base": ("--base", "nano")} if how == "flag" else {}
    toml = "training.steps = 7\n" + ('model.base = "nano"\n' if how == "file" else "")
    made = resolved(tmp_path, toml, flags=flags)
    config = made.config
    assert (config.dataset.resolution, config.lora.targets) == ([128], "all-linear")
    assert (config.memory.base_precision, config.training.precision) == ("fp32", "fp32")
    assert (config.training.optimizer, config.training.device) == ("adamw", "cpu")
    assert made.origins["training.optimizer"].startswith("preset nano (nano.toml:")
    assert (config.training.steps, made.origins["training.steps"]) == (7, "fluxtune.toml:1")


def test_the_embedded_model_with_another_preset_takes_that_alone(tmp_path: Path) -> None:
    config = resolved(tmp_path, preset="24gb", sets=["model.base=nano"]).config
    assert (config.memory.base_precision, config.dataset.resolution) == ("int8", [1024])


def test_the_lowest_layer_gives_way_to_preset_and_file(tmp_path: Path) -> None:
    lowest = Layer(
        "run.toml", {"lora": {"rank": 2}, "memory": {"base_precision": "nf4"}, "previews": {"steps": 3}}, tmp_path
    )
    (tmp_path / "fluxtune.toml").write_text("lora.rank = 4\n", encoding="utf-8")
    made = resolve(preset="24gb", config_file=None, flags={}, sets=[], working_folder=tmp_path, lowest=lowest)
    assert (made.config.lora.rank, made.config.memory.base_precision) == (4, "int8")
    assert (made.config.previews.steps, made.origins["previews.steps"]) == (3, "run.toml")


def test_the_demo_data_set_stays_away_from_other_bases_and_other_pictures(tmp_path: Path) -> None:
    own = {"dataset.folders": ("FOLDER", [{"path": "photos"}])}
    assert resolved(tmp_path, preset="nano", flags=own).config.dataset.trigger is None  # type: ignore[arg-type]
    assert resolved(tmp_path, preset="nano", sets=["model.base=other"]).config.dataset.folders == []
    assert resolved(tmp_path, preset="24gb").config.dataset.folders == []


def test_the_user_may_change_the_demo_but_keeps_its_pictures(tmp_path: Path) -> None:
    config = resolved(tmp_path, preset="nano", sets=["dataset.trigger=blixt"]).config
    assert (config.dataset.trigger, config.dataset.folders[0].path) == ("blixt", "nano:demo")


def test_a_relative_folder_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.toml").write_text('[[dataset.folders]]\npath = "photos"\n', encoding="utf-8")
    made = resolve(preset=None, config_file=Path("sub/c.toml"), flags={}, sets=[], working_folder=tmp_path)
    assert made.config.dataset.folders[0].path == str(tmp_path / "sub" / "photos")


def test_a_relative_folder_of_a_flag_is_relative_to_the_working_folder(tmp_path: Path) -> None:
    made = resolved(tmp_path, flags={"dataset.folders": ("FOLDER", [{"path": "../photos"}])})
    assert made.config.dataset.folders[0].path == str(tmp_path.parent / "photos")


def test_a_base_is_a_path_only_where_it_exists(tmp_path: Path) -> None:
    assert resolved(tmp_path, sets=["model.base=org/model"]).config.model.base == "org/model"
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert resolved(tmp_path, sets=["model.base=org/model"]).config.model.base == str(tmp_path / "org" / "model")


def test_only_as_a_base_does_nano_mean_the_embedded_model(tmp_path: Path) -> None:
    sets = ["model.base=nano", "dataset.folders=[{path = 'nano'}]", "lora.init_from=nano"]
    config = resolved(tmp_path, sets=sets).config
    assert config.model.base == "nano"
    assert (config.dataset.folders[0].path, config.lora.init_from) == (str(tmp_path / "nano"),) * 2


def test_a_home_folder_of_nobody_stays_a_name(tmp_path: Path) -> None:
    config = resolved(tmp_path, sets=["dataset.folders=[{path = '~nouser/p'}]"]).config
    assert config.dataset.folders[0].path == str(tmp_path / "~nouser" / "p")


def test_a_preset_by_path_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "a{b}.toml").write_text("lora.rank = 6\n", encoding="utf-8")
    assert resolved(tmp_path, preset="./a{b}.toml").origins["lora.rank"] == "preset a{b} (./a{b}.toml:1)"


def test_values_of_set_are_toml_and_bare_words_are_text(tmp_path: Path) -> None:
    sets = [
        "training.steps=12",
        "dataset.buckets=false",
        "dataset.resolution=[512, 768]",
        "dataset.trigger=zorvex dog",
        'dataset.class_word="7"',
        "model.revision=a = b",
    ]
    config = resolved(tmp_path, sets=sets).config
    assert (config.training.steps, config.dataset.buckets) == (12, False)
    assert config.dataset.resolution == [512, 768]
    assert (config.dataset.trigger, config.dataset.class_word) == ("zorvex dog", "7")
    assert config.model.revision == "a = b"


def test_a_value_of_set_cannot_smuggle_in_another_key(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, sets=["training.steps=1\nseed = 2"])
    assert problem[1] == 'training.steps is "1\\nseed = 2": wanted a whole number from 1 to 10,000,000'


def test_mistakes_of_all_layers_are_told_at_once_each_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[memory]\nbase_precision = 'nf5'\n", encoding="utf-8")
    found = problems(
        tmp_path,
        toml="[lora]\nrnak = 4\n[training]\nsteps = 0\n",
        preset="./mine.toml",
        flags={"training.seed": ("--seed", -1)},
        sets=["lora", "training.nothing_like_it=1"],
    )
    assert [(where, message.split(":")[0]) for where, message, _ in found] == [
        ("--set", '"lora" sets nothing'),
        ("./mine.toml:2", 'memory.base_precision is "nf5"'),
        ("fluxtune.toml:2", "unknown setting lora.rnak"),
        ("fluxtune.toml:4", "training.steps is 0"),
        ("--seed", "training.seed is -1"),
        ("--set", "unknown setting training.nothing_like_it"),
    ]
    assert all(hint for _, _, hint in found)


@pytest.mark.parametrize(
    ("toml", "where", "message", "hint"),
    [
        ("[lora]\nrnak = 4", "fluxtune.toml:2", "unknown setting lora.rnak", "did you mean lora.rank?"),
        (
            "[training]\nresolution = 5",
            "fluxtune.toml:2",
            "unknown setting training.resolution",
            "resolution belongs elsewhere: dataset.resolution",
        ),
        ("\n[lorra]\nrank = 4", "fluxtune.toml:2", "unknown setting lorra", "did you mean lora?"),
        ("rank = 4", "fluxtune.toml:1", "unknown setting rank", "rank belongs elsewhere: lora.rank"),
        (
            "[memory]\nqqqq = 1",
            "fluxtune.toml:2",
            "unknown setting memory.qqqq",
            f"the settings of [memory] are {MEMORY}",
        ),
        (
            "[dataset]\nbuckets = 'False'",
            "fluxtune.toml:2",
            'dataset.buckets is "False": wanted true or false',
            "write it without quotes: buckets = false",
        ),
        (
            "training.steps = '100'",
            "fluxtune.toml:1",
            'training.steps is "100": wanted a whole number from 1 to 10,000,000',
            "write it without quotes: steps = 100",
        ),
        (
            "dataset.trigger = 5",
            "fluxtune.toml:1",
            "dataset.trigger is 5: wanted text that is not blank",
            'put it in quotes: trigger = "5"',
        ),
        (
            "[dataset]\nclass_word = ' '",
            "fluxtune.toml:2",
            'dataset.class_word is " ": wanted text that is not blank',
            "What kind of thing the subject is (person, dog, mug); stands for the trigger in preservation. "
            "The default is unset.",
        ),
        (
            "training.optimizer = 'adamw8bit'",
            "fluxtune.toml:1",
            'training.optimizer is "adamw8bit": wanted one of "adamw", "adamw-8bit"',
            'did you mean "adamw-8bit"?',
        ),
        (
            "[dataset]\nresolution = [\n  512,\n  500,\n]",
            "fluxtune.toml:4",
            "dataset.resolution has 500: wanted a list of at least 1, each a whole number from 64 to 4,096, "
            "a multiple of 16 (in px)",
            None,
        ),
        (
            "training.learning_rate = nan",
            "fluxtune.toml:1",
            "training.learning_rate is nan: wanted a number above 0 and at most 1",
            "Peak learning rate. The default is 0.0001.",
        ),
        (
            "lora.alpha = inf",
            "fluxtune.toml:1",
            "lora.alpha is inf: wanted a number above 0",
            None,
        ),
        (
            "[training]\nLearning-Rate = 1e-4",
            "fluxtune.toml:2",
            "unknown setting training.Learning-Rate",
            "did you mean training.learning_rate?",
        ),
        (
            "'training.steps' = 5",
            "fluxtune.toml:1",
            'unknown setting "training.steps"',
            "write it without quotes: training.steps",
        ),
        ('lora."" = 5', "fluxtune.toml:1", 'unknown setting lora.""', "the settings of [lora] are rank, alpha, "),
        (
            "[lora]\n'rаnk' = 5",
            "fluxtune.toml:2",
            'unknown setting lora."rаnk"',
            "did you mean lora.rank? There is CYRILLIC SMALL LETTER A in it.",
        ),
        (
            "lora.targets = [\n  'a.*',\n  5,\n]",
            "fluxtune.toml:3",
            'lora.targets has 5: wanted one of "attention", "attention+mlp", "all-linear" or a list, each text',
            None,
        ),
        ("[[lora]]\nrank = 5", "fluxtune.toml:1", 'lora is [{"rank": 5}]: wanted a section of settings', None),
        (
            "dataset.trigger = 1979-05-27",
            "fluxtune.toml:1",
            "dataset.trigger is 1979-05-27: wanted text that is not blank",
            'put it in quotes: trigger = "1979-05-27"',
        ),
        (
            "lora.rank = 0x" + "f" * 9000,
            "fluxtune.toml:1",
            "lora.rank is too large to show: wanted a whole number from 1 to 1,024",
            None,
        ),
        (
            'model.base = "a\\u0000b"',
            "fluxtune.toml:1",
            'model.base is "a\\u0000b": wanted a path or id',
            None,
        ),
        (
            "memory = 5",
            "fluxtune.toml:1",
            "memory is 5: wanted a section of settings",
            f"name one of its settings: {MEMORY}",
        ),
        (
            "[dataset]\nfolders = ['photos']",
            "fluxtune.toml:2",
            'dataset.folders has "photos": wanted a list of tables, each opened by [[dataset.folders]]',
            None,
        ),
        (
            "[[dataset.folders]]\npath = 'a'\n[[dataset.folders]]\nrepeats = 2",
            "fluxtune.toml:3",
            "a row of dataset.folders has no path",
            None,
        ),
        (
            "[[dataset.folders]]\npath = 'a'\nrepeat = 2",
            "fluxtune.toml:3",
            "unknown setting dataset.folders.repeat",
            "did you mean dataset.folders.repeats?",
        ),
        (
            "[lora]\nrank = 4\nrank = 5",
            "fluxtune.toml:3",
            "not valid TOML: the key is set twice, or is both a value and a section",
            "mend this line: rank = 5",
        ),
        (
            "[lora]\nrank = sixteen",
            "fluxtune.toml:2",
            "not valid TOML: there is no value that TOML knows; text stands in quotes",
            "mend this line: rank = sixteen",
        ),
        (
            'name = "mug\n',
            "fluxtune.toml:1",
            "not valid TOML: a text is opened with a quote and not closed on its line",
            'mend this line: name = "mug',
        ),
        (
            "lora.rank",
            "fluxtune.toml:1",
            "not valid TOML: a line is neither `key = value` nor a [section]",
            "mend this line: lora.rank",
        ),
        (
            "previews.prompts = [\n  'a',\n",
            "fluxtune.toml:1",
            "not valid TOML: a quote or a bracket is opened here and never closed",
            "mend this line: previews.prompts = [",
        ),
        (
            "[previews]\nprompts = [\n  'a',\n\n[lora]\nrank = 4",
            "fluxtune.toml:2",
            "not valid TOML: a quote or a bracket is opened here and never closed",
            "mend this line: prompts = [",
        ),
        (
            "[lora]\nrank = 5\nrank = " + "9" * 5000,
            "fluxtune.toml:3",
            "not valid TOML: a number has too many digits",
            "mend this line: rank = 99999",
        ),
        (
            "[lora]\ntargets = " + "[" * 3000 + "]" * 3000,
            "fluxtune.toml:2",
            "not valid TOML: lists or tables are nested too deeply",
            "mend this line: targets = [[[[[",
        ),
        (
            'model.vae = "C:\\pictures"',
            "fluxtune.toml:1",
            "not valid TOML: a backslash in a text: write it twice, or put the text in single quotes",
            "mend this line: model.vae = ",
        ),
    ],
)
def test_a_mistake_says_where_what_was_seen_what_is_wanted_and_what_to_do(
    tmp_path: Path, toml: str, where: str, message: str, hint: str | None
) -> None:
    ((seen_where, seen_message, seen_hint),) = problems(tmp_path, toml=toml)
    assert (seen_where, seen_message) == (where, message)
    assert (seen_hint or "").startswith(hint or "") and seen_hint


@pytest.mark.parametrize(
    "text", ["sampling.negative_prompt=\udcff", "previews.prompts=['a \udcff']", "dataset.trigger=\udcff"]
)
def test_bytes_of_the_command_line_that_are_no_utf_8_are_refused(tmp_path: Path, text: str) -> None:
    ((where, message, hint),) = problems(tmp_path, sets=[text])
    assert where == "--set" and "which is no UTF-8 text: wanted " in message and "LANG=C.UTF-8" in str(hint)


def test_text_that_is_not_utf_8_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "fluxtune.toml").write_bytes(b"[lora]\n# caf\xe9\n")
    hint = "save the file as UTF-8; the byte comes after: # caf"
    assert problems(tmp_path) == [("fluxtune.toml:2", "byte 0xe9 is no UTF-8 text", hint)]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "fluxtune.toml").write_bytes(b"\xef\xbb\xbf[lora]\r\nrank = 3\r\n")
    made = resolved(tmp_path)
    assert (made.config.lora.rank, made.origins["lora.rank"]) == (3, "fluxtune.toml:2")


def test_a_config_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    for name in ("missing.toml", "folder.toml"):
        with pytest.raises(ConfigError) as caught:
            resolve(preset=None, config_file=Path(name), flags={}, sets=[], working_folder=tmp_path)
        (problem,) = caught.value.problems
        assert problem.where == name
        assert problem.message.startswith("cannot read the file: ")


@pytest.mark.parametrize("text", ["training.steps", "=5", "training steps=5", ""])
def test_set_without_a_key_and_a_value_is_refused(tmp_path: Path, text: str) -> None:
    ((where, message, _),) = problems(tmp_path, sets=[text])
    assert (where, message) == ("--set", f'"{text}" sets nothing: wanted section.key=value')


def test_set_of_a_section_is_refused(tmp_path: Path) -> None:
    ((where, message, hint),) = problems(tmp_path, sets=["training.preservation=output"])
    assert (where, message) == ("--set", "training.preservation is a section: wanted one of its settings")
    assert hint == "for instance --set training.preservation.method=..."


@pytest.mark.parametrize("method", ["output", "prior"])
def test_preservation_needs_a_class_word_or_prompts(tmp_path: Path, method: str) -> None:
    ((where, message, _),) = problems(tmp_path, toml=f"[training.preservation]\nmethod = '{method}'\n")
    assert where == "fluxtune.toml:2"
    assert "wanted dataset.class_word or training.preservation.prompts" in message


def test_output_preservation_needs_a_trigger_to_replace(tmp_path: Path) -> None:
    ((where, message, _),) = problems(tmp_path, sets=["training.preservation.method=output", "dataset.class_word=dog"])
    assert where == "--set"
    assert "wanted dataset.trigger" in message


def test_captioning_with_the_trigger_needs_one(tmp_path: Path) -> None:
    ((_, message, hint),) = problems(tmp_path, sets=["dataset.missing_captions=trigger"])
    assert "dataset.trigger is unset" in message
    assert hint == "set dataset.trigger"


@pytest.mark.parametrize(
    ("toml", "sets", "where"),
    [
        ("training.warmup = 10\ntraining.steps = 10", [], "fluxtune.toml:1"),
        ("training.warmup = 10\n", ["training.steps=10"], "--set"),
        ("training.steps = 10\n", ["training.warmup=10"], "--set"),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_refused_where_it_came_about(
    tmp_path: Path, toml: str, sets: list[str], where: str
) -> None:
    ((seen, message, _),) = problems(tmp_path, toml=toml, sets=sets)
    assert seen == where
    assert message.startswith("training.warmup is 10 steps")
    assert "training.steps" in message


def test_a_base_in_bf16_cannot_be_computed_with_in_float32(tmp_path: Path) -> None:
    ((where, message, hint),) = problems(tmp_path, sets=["training.precision=fp32"])
    assert (where, hint) == ("--set", 'set memory.base_precision = "fp32" too')
    assert 'memory.base_precision is "bf16"' in message


def test_a_contradiction_is_told_at_the_higher_layer_and_names_both_settings(tmp_path: Path) -> None:
    ((where, message, hint),) = problems(tmp_path, preset="nano", sets=["memory.base_precision=bf16"])
    assert (where, hint) == ("--set", 'set training.precision = "bf16" too')
    assert 'training.precision is "fp32"' in message
    assert 'memory.base_precision is "bf16"' in message


def test_nothing_that_is_not_recomputed_can_be_offloaded(tmp_path: Path) -> None:
    ((where, message, _),) = problems(tmp_path, preset="nano", sets=["memory.offload_activations=true"])
    assert where == "--set"
    assert 'memory.recompute is "none"' in message


def test_taking_the_preservation_prompts_away_is_told_where_that_is_done(tmp_path: Path) -> None:
    toml = "[training.preservation]\nmethod = 'prior'\nprompts = ['a dog']\n"
    ((where, message, _),) = problems(tmp_path, toml=toml, sets=["training.preservation.prompts=[]"])
    assert where == "--set"
    assert "training.preservation.prompts" in message
