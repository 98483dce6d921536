from __future__ import annotations

from pathlib import Path

import pytest

from fluxtune.errors import ConfigError, UsageError
from fluxtune.sampling.prompts import PromptRow, read_prompts, row_value

TOML = """
steps = 20
negative_prompt = "blurry"

[[prompts]]
prompt = "a cup"
seed = 5
size = "96x64"
guidance = 2

[[prompts]]
prompt = "a boat"
steps = 8
count = 3
name = "boat"
start = "pictures/boat.png"
strength = 0.5
"""


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    rows = read_prompts(written(tmp_path, "prompts.txt", "\ufeffa naïve cup\r\n\r\n  a boat \n"))
    assert rows == [PromptRow(prompt="a naïve cup"), PromptRow(prompt="a boat")]


def test_toml_has_a_table_for_each_prompt_and_above_them_what_holds_for_all(tmp_path: Path) -> None:
    cup, boat = read_prompts(written(tmp_path, "prompts.toml", TOML))
    assert (cup.prompt, cup.seed, cup.width, cup.height, cup.guidance) == ("a cup", 5, 96, 64, 2.0)
    assert (cup.steps, cup.negative_prompt, cup.name) == (20, "blurry", None)
    assert (boat.steps, boat.count, boat.name, boat.strength) == (8, 3, "boat", 0.5)
    assert boat.start == str(tmp_path / "pictures" / "boat.png")


def test_json_lines_have_an_object_or_a_text_each(tmp_path: Path) -> None:
    content = '{"prompt": "a cup", "width": 128, "true_guidance": 3}\n\n"a boat"\n'
    assert read_prompts(written(tmp_path, "prompts.jsonl", content)) == [
        PromptRow(prompt="a cup", width=128, true_guidance=3.0),
        PromptRow(prompt="a boat"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "where", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "step": 4}\n', ":2", 'unknown key "step"'),
        ("p.jsonl", '{"steps": 4}\n', ":1", "no prompt"),
        ("p.jsonl", '\n{"prompt": "a",}\n', ":2", "this line is no JSON"),
        ("p.jsonl", "[1]\n", ":1", "no JSON object"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}\n', ":1", "seed is -1: wanted a whole number from 0"),
        ("p.jsonl", '{"prompt": "a", "name": "../x"}\n', ":1", 'name is "../x": wanted letters'),
        ("p.toml", '[[prompts]]\nprompt = "a"\n\nsteps = "4"\n', ":4", 'steps is "4": wanted a whole number'),
        ("p.toml", 'steps = 0\n[[prompts]]\nprompt = "a"\n', ":1", "steps is 0"),
        ("p.toml", '[[prompts]]\nprompt = "a"\nsize = "large"\n', ":3", 'size is "large": wanted WIDTHxHEIGHT'),
        ("p.toml", '[[prompts]]\nprompt = "a"\nsize = "100x64"\n', ":3", 'size is "100x64": wanted a whole number'),
        ("p.toml", '[[prompts]]\nprompt = ""\n', ":2", 'prompt is "": wanted text that is not blank'),
        ("p.jsonl", '"  "\n', ":1", 'prompt is "  ": wanted text that is not blank'),
        (
            "p.jsonl",
            '"a \\ud800"\n',
            ":1",
            "which is no UTF-8 text: wanted text that is not blank",
        ),
        ("p.toml", 'stepz = 3\n[[prompts]]\nprompt = "a"\n[[prompts]]\nprompt = "b"\n', ":1", 'unknown key "stepz"'),
        ("p.toml", "[[prompts]]\nsteps = 4\n", ":1", "no prompt"),
        ("p.toml", 'prompts = ["a"]\n', ":1", "wanted a table for each prompt"),
        ("p.toml", "prompts = \n", ":1", "not valid TOML"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, name: str, content: str, where: str, message: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(UsageError) as error:
        read_prompts(path)
    (problem,) = error.value.problems if isinstance(error.value, ConfigError) else [error.value]
    assert problem.where == f"{path}{where}"
    assert message in problem.message


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "p.jsonl", '{"prompt": "a", "steps": 0}\n{"prompt": "b", "guidence": 2}\n')
    with pytest.raises(ConfigError) as error:
        read_prompts(path)
    assert [problem.where for problem in error.value.problems] == [f"{path}:1", f"{path}:2"]
    assert error.value.problems[1].hint == "did you mean guidance?"


@pytest.mark.parametrize(("name", "form"), [("p.jsonl", '"{}"\n\n"{}"\n'), ("p.txt", "{}\n\n{}\n")])
def test_only_line_feeds_end_a_line(tmp_path: Path, name: str, form: str) -> None:
    texts = ["a\u2028cup\u0085and", "a boat"]
    assert [row.prompt for row in read_prompts(written(tmp_path, name, form.format(*texts)))] == texts


@pytest.mark.parametrize("content", ["\n  \n", b""])
def test_a_file_without_a_prompt_is_refused(tmp_path: Path, content: str | bytes) -> None:
    for name in ("p.txt", "p.toml", "p.jsonl"):
        with pytest.raises(UsageError, match="there is no prompt in this file"):
            read_prompts(written(tmp_path, name, content))


def test_one_value_of_a_row_is_checked_as_in_a_file() -> None:
    assert row_value("size", "128x64", "--grid") == {"width": 128, "height": 64}
    assert row_value("guidance", 2, "--grid") == {"guidance": 2.0}
    with pytest.raises(UsageError, match="steps is 0: wanted a whole number from 1") as error:
        row_value("steps", 0, "--grid")
    assert error.value.where == "--grid"
