from __future__ import annotations

from pathlib import Path

import pytest

from fluxtune.config.layers import resolve
from fluxtune.config.settings import Setting, defaults, field_of, sections, settings
from fluxtune.errors import ConfigError

SETTINGS = list(settings().values())
WRONG = {
    "string": {"a table": 1},
    "boolean": "yes, please",
    "integer": 0.5,
    "number": "much",
    "array": 3.5,
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_setting_has_help_that_is_a_sentence(setting: Setting) -> None:
    assert setting.help[0].isupper() or setting.help.split(";")[0] in setting.choices
    assert setting.help.endswith((".", ")."))
    assert "\n" not in setting.help


@pytest.mark.parametrize("key", sections())
def test_every_section_says_what_it_is_about(key: str) -> None:
    assert sections()[key].endswith(".")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_a_wrong_type_of_any_setting_is_refused_by_its_name(tmp_path: Path, setting: Setting) -> None:
    kind = next(kind for kind in sorted(setting.kinds) if kind != "null")
    wrong: object = WRONG[kind]
    *path, name = setting.key.split(".")
    if setting.in_row:
        wrong = [{"path": "x", name: wrong}]
        *path, name = path
    for part in reversed([*path, name]):
        wrong = {part: wrong}
    flags = {next(iter(wrong)): ("--flag", wrong[next(iter(wrong))])}  # type: ignore[index, call-overload]
    with pytest.raises(ConfigError) as caught:
        resolve(preset=None, config_file=None, flags=flags, sets=[], working_folder=tmp_path)
    (problem,) = caught.value.problems
    assert problem.message.startswith(setting.key)
    assert problem.message.endswith(f"wanted {setting.wanted}")
    assert problem.hint


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_a_misspelled_key_of_any_setting_is_refused_with_its_name(tmp_path: Path, setting: Setting) -> None:
    section, _, name = setting.key.rpartition(".")
    misspelled = f"{name[:-1]}{'x' if name[-1] != 'x' else 'y'}"
    if setting.in_row:
        toml = f"[[{section}]]\npath = 'x'\n{misspelled} = 1\n"
    else:
        toml = f"{'[' + section + ']' if section else ''}\n\n{misspelled} = 1\n"
    (tmp_path / "fluxtune.toml").write_text(toml, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        resolve(preset=None, config_file=None, flags={}, sets=[], working_folder=tmp_path)
    (problem,) = caught.value.problems
    wrong = f"{section}.{misspelled}" if section else misspelled
    assert (problem.where, problem.message) == ("fluxtune.toml:3", f"unknown setting {wrong}")
    assert problem.hint == f"did you mean {setting.key}?"


def test_the_fields_that_help_reads_are_the_settings() -> None:
    for key, default in defaults().items():
        assert field_of(key).description == settings()[key].help
        assert field_of(key).get_default(call_default_factory=True) == default


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("lora.rank", "a whole number from 1 to 1,024"),
        ("lora.alpha", "a number above 0"),
        ("lora.dropout", "a number of at least 0 and below 1"),
        ("dataset.max_aspect", "a number from 1 to 4"),
        ("dataset.background", 'a colour written "#rrggbb"'),
        ("previews.width", "a whole number from 64 to 4,096, a multiple of 16 (in px)"),
        ("memory.recompute", 'one of "none", "all", "auto"'),
        ("training.warmup", "a whole number of at least 0 (in steps)"),
        (
            "previews.seeds",
            "a list of at least 1, each a whole number of at least 0 and below 9,223,372,036,854,775,808",
        ),
        ("lora.init_from", "a path"),
        ("model.base", "a path or id"),
        ("captioning.prompt", "text that is not empty"),
    ],
)
def test_ranges_and_units_are_said_in_words(key: str, wanted: str) -> None:
    assert settings()[key].wanted == wanted
