from __future__ import annotations

import random
from typing import Any

import pytest
import tomli
import tomlkit

from fluxtune.config.positions import KeyPath, key_lines, statement_line

DOCUMENT = '''# a comment with [brackets] and key = 1
name = "a # in a text" # and one after it
"quoted.key".'other key' = 1
training.steps = 5

[lora]
rank = 4
note = """
[not a table]
rank = 5 \\""" two quotes at the end""\"""
targets = [ "a,]", # a list over lines
  [2, { z = "}", y.x = 1 }], 'b',
]
[[dataset.folders]]
path = "first"
  [[ dataset . folders ]]  # spaced out
path = "second"
[dataset.folders.mask]
inline = { of = 1, deep.er = [ ] }
empty = {}
when = 1979-05-27 07:32:00
"caf\\u00e9" = \'\'\'it's\'\'\'
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("quoted.key", "other key"), 3),
        (("training",), 4),
        (("training", "steps"), 4),
        (("lora",), 6),
        (("lora", "rank"), 7),
        (("lora", "note"), 8),
        (("lora", "targets"), 11),
        (("lora", "targets", 0), 11),
        (("lora", "targets", 1), 12),
        (("lora", "targets", 1, 1, "y", "x"), 12),
        (("lora", "targets", 2), 12),
        (("dataset", "folders"), 14),
        (("dataset", "folders", 0, "path"), 15),
        (("dataset", "folders", 1), 16),
        (("dataset", "folders", 1, "path"), 17),
        (("dataset", "folders", 1, "mask"), 18),
        (("dataset", "folders", 1, "mask", "inline", "deep", "er"), 19),
        (("dataset", "folders", 1, "mask", "empty"), 20),
        (("dataset", "folders", 1, "mask", "when"), 21),
        (("dataset", "folders", 1, "mask", "café"), 22),
    ],
)
def test_each_key_is_found_on_its_line(path: KeyPath, line: int) -> None:
    assert key_lines(DOCUMENT)[path] == line


def test_the_keys_found_are_those_of_the_parser() -> None:
    assert set(key_lines(DOCUMENT)) == _paths(tomli.loads(DOCUMENT))


@pytest.mark.parametrize("seed", range(40))
def test_random_documents_give_the_keys_of_the_parser(seed: int) -> None:
    text = tomlkit.dumps(_random_table(random.Random(seed), depth=3))
    assert set(key_lines(text)) == _paths(tomli.loads(text))


def test_windows_line_ends_count_once() -> None:
    assert key_lines("a = 1\r\n\r\nb = 2\r\n") == {("a",): 1, ("b",): 3}


def test_the_escapes_of_newer_toml_are_known_in_keys() -> None:
    assert key_lines('"\\e" = 1\n"\\x41\\\\" = 2\n') == {("\x1b",): 1, ("A\\",): 2}


@pytest.mark.parametrize(
    ("text", "at", "line"),
    [
        ("a = 1\nb = [\n  1,\n", "  1", 2),
        ("a = 1\nb = [\n  1,\n\n[lora]\nrank = 4\n", "[lora]", 2),
        ('[a]\n# = "\nb = """\nwords\n[c]\n', "[c]", 3),
        ("[a]\nb = 'it\n\nc = 5\n", "it", 2),
        ("[a]\nb = { c = 1,\n  d = \n", "  d", 2),
        ("a = 1\n= 5\n", "= 5", 2),
        ("a = 1\n\nb\n", "b", 3),
        ("a = " + "[" * 5000, "[", 1),
    ],
)
def test_the_statement_that_a_parser_gave_up_in_is_found(text: str, at: str, line: int) -> None:
    assert statement_line(text, text.index(at)) == line


def _paths(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    return {(*path, key) for key, _ in items}.union(*(_paths(inner, (*path, key)) for key, inner in items))


def _random_table(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(["a", "b-c", "with space", "dot.ted", 'quo"te', "ünï", "x_1"], chance.randint(1, 5))
    return {name: _random_value(chance, depth) for name in names}


def _random_value(chance: random.Random, depth: int) -> Any:
    scalars = [1, -2.5, True, "text", 'a "b" # [c]', "two\nlines", "back\\slash", "", "ends with '''"]
    kind = chance.randint(0, 5 if depth else 2)
    if kind <= 2:
        return chance.choice(scalars)
    if kind == 3:
        return [chance.choice(scalars) for _ in range(chance.randint(0, 3))]
    if kind == 4:
        return [_random_table(chance, depth - 1) for _ in range(chance.randint(1, 3))]
    return _random_table(chance, depth - 1)
