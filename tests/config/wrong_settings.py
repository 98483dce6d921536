"""Wrong values of every setting, made from the schema: each with the place in the text that a message must tell.

A walk of the pydantic models of its own, so that what fluxtune says of its schema is checked and not repeated.
"""

from __future__ import annotations

import json
import math
import random
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fluxtune.config.schema import Config

MARK = "\ue000"
"""Stands in a text where its mistake is, and is taken out before anybody reads it."""

SAMPLES = {"^[^": "words", r"\S": "zorvex", "^#": "#a0b1c2", "^(auto": ".txt", r"^([A-Za-z0-9]": "mug"}
"""Beginning of a pattern -> a text that matches it."""

DATE = "1979-05-27T07:32:00Z"


@dataclass(frozen=True)
class Spec:
    """What one setting takes: ``kind`` is bool, int, float, str, choice, list or rows."""

    path: tuple[str, ...]
    kind: str
    in_row: bool = False
    choices: tuple[str, ...] = ()
    item: Spec | None = None
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    multiple: int | None = None
    pattern: str | None = None
    shortest: int = 0
    longest: int | None = None
    also_choices: tuple[str, ...] = ()
    """Of a list: names that stand for one."""

    @property
    def key(self) -> str:
        return ".".join(self.path)


def specs(model: type[BaseModel] = Config, path: tuple[str, ...] = (), in_row: bool = False) -> Iterator[Spec]:
    """Every setting of a model and of the sections and rows in it."""
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from specs(annotation, (*path, name), in_row)
            continue
        yield _spec(annotation, list(field.metadata), Spec((*path, name), "", in_row))
        rows = get_args(annotation)
        if get_origin(annotation) is list and issubclass(_plain(rows[0]), BaseModel):
            yield from specs(rows[0], (*path, name), in_row=True)


def section_paths(model: type[BaseModel] = Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every section of a model."""
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield (*path, name)
            yield from section_paths(annotation, (*path, name))


def _plain(annotation: Any) -> type:
    return annotation if isinstance(annotation, type) else object


def _spec(annotation: Any, marks: list[Any], spec: Spec) -> Spec:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        own = [mark for each in inner[1:] for mark in (each.metadata if isinstance(each, FieldInfo) else [each])]
        return _spec(inner[0], marks + own, spec)
    if origin in (Union, types.UnionType):
        kinds = [_spec(each, marks, spec) for each in inner if each is not type(None)]
        names = next((each.choices for each in kinds if each.kind == "choice"), ())
        return replace(kinds[-1], also_choices=names) if len(kinds) > 1 else kinds[0]
    if origin is Literal:
        return replace(spec, kind="choice", choices=inner)
    if origin is list:
        kind = "rows" if issubclass(_plain(inner[0]), BaseModel) else "list"
        item = None if kind == "rows" else _spec(inner[0], [], Spec(spec.path, "", spec.in_row))
        return replace(_bounded(spec, marks), kind=kind, item=item)
    return replace(_bounded(spec, marks), kind=annotation.__name__)


def _bounded(spec: Spec, marks: list[Any]) -> Spec:
    names = {"ge": "low", "gt": "above", "le": "high", "lt": "below", "multiple_of": "multiple"}
    names |= {"pattern": "pattern", "min_length": "shortest", "max_length": "longest"}
    found = {ours: getattr(mark, name) for mark in marks for name, ours in names.items() if hasattr(mark, name)}
    return replace(spec, **{name: value for name, value in found.items() if value is not None})


def right(spec: Spec, chance: random.Random) -> str:
    """A value that the setting takes, as TOML writes it."""
    match spec.kind:
        case "bool":
            return chance.choice(["true", "false"])
        case "choice":
            return quoted(chance.choice(spec.choices), chance)
        case "int":
            low = int(spec.low or 0)
            high = min(x for x in (spec.high, spec.below and spec.below - 1, low + 500) if x is not None)
            step = spec.multiple or 1
            return str(chance.randrange(math.ceil(low / step) * step, int(high) + 1, step))
        case "float":
            low = spec.low if spec.low is not None else (spec.above or 0.0)
            top = next((x for x in (spec.high, spec.below) if x is not None), low + 5)
            return repr(low + (top - low) * chance.uniform(0.01, 0.99))
        case "str":
            return quoted(_sample(spec), chance)
        case "list":
            assert spec.item is not None
            items = [right(spec.item, chance) for _ in range(chance.randint(max(1, spec.shortest), 3))]
            return "[" + ", ".join(items) + "]"
    raise AssertionError(spec)


def _sample(spec: Spec) -> str:
    if spec.pattern is None:
        return "words"
    return next(text for start, text in SAMPLES.items() if spec.pattern.startswith(start))


def quoted(text: str, chance: random.Random) -> str:
    return f"'{text}'" if chance.random() < 0.3 and "'" not in text else '"' + text.replace('"', '\\"') + '"'


@dataclass(frozen=True)
class Wrong:
    """A wrong value as TOML writes it, with a MARK in it if the mistake is not on the line of its key.

    Attributes:
        said: what the message must hold beside the key.
        advised: what the hint must hold.
    """

    text: str
    said: tuple[str, ...] = ()
    advised: tuple[str, ...] = ()


def wrong_values(spec: Spec, chance: random.Random) -> Iterator[tuple[str, Wrong]]:
    """(kind of mistake, value) of everything that can be wrong with a value of this setting."""
    yield from _of_another_type(spec, chance)
    match spec.kind:
        case "int" | "float":
            yield from _out_of_range(spec)
        case "choice":
            yield from _other_choices(spec.choices, chance)
        case "str":
            yield from _wrong_texts(spec)
        case "list":
            yield from _wrong_lists(spec, chance)
    if spec.also_choices:
        yield from _other_choices(spec.also_choices, chance)


def _of_another_type(spec: Spec, chance: random.Random) -> Iterator[tuple[str, Wrong]]:
    values: dict[str, list[str]] = {
        "text": ['"16"', '""', '"none"', '"null"', "'words of a text'"],
        "bool": ["true", "false"],
        "int": ["1", "0", "-3", "0x10"],
        "float": ["1.0", "0.5", "nan", "-0.0"],
        "list": ["[]", "[1]", '["a"]', "[[1]]"],
        "table": ["{}", "{ a = 1 }", "{ a = { b = 2 } }"],
        "date": [DATE, "1979-05-27", "07:32:00"],
    }
    fits = {"str": {"text"}, "choice": {"text"}, "bool": {"bool"}, "int": {"int"}, "float": {"int", "float"}}
    fits |= {"list": {"list"}, "rows": {"list"}}
    taken = set(fits[spec.kind])
    if spec.also_choices:
        taken.add("text")
    if spec.kind == "list" and spec.item is not None and spec.item.kind == "int" and spec.key == "dataset.resolution":
        taken.add("int")
    for kind in values.keys() - taken:
        yield f"{kind} for {spec.kind}", Wrong(chance.choice(values[kind]))
    if spec.kind == "bool":
        for text in ("true", "False"):
            yield "a quoted switch", Wrong(f'"{text}"', advised=(f"= {text.lower()}",))
    if spec.kind in ("int", "float"):
        yield "a quoted number", Wrong('"16"', advised=("without quotes", "= 16"))


def _out_of_range(spec: Spec) -> Iterator[tuple[str, Wrong]]:
    whole = spec.kind == "int"
    beyond: list[float] = []
    if spec.low is not None:
        beyond += [spec.low - 1, spec.low - 1000] if whole else [math.nextafter(spec.low, -math.inf), spec.low - 7]
    if spec.above is not None:
        beyond += [spec.above, spec.above - 1]
    if spec.high is not None:
        beyond += [spec.high + 1, spec.high * 10 + 1] if whole else [math.nextafter(spec.high, math.inf), spec.high + 7]
    if spec.below is not None:
        beyond += [spec.below, spec.below * 2]
    if spec.multiple is not None:
        beyond += [spec.multiple * 10 + 1]
    for value in beyond:
        yield "just outside", Wrong(str(int(value)) if whole else repr(float(value)), said=(_bound_words(spec),))
    if not whole:
        for text in ("nan", "inf", "-inf", "+nan", "1e400", "-1e400"):
            yield "not finite", Wrong(text)
        if spec.high is not None or spec.below is not None:
            yield "a very long number", Wrong("1" + "0" * 400)
    elif spec.high is not None or spec.below is not None:
        yield "a very long number", Wrong("1" + "0" * 400)
        yield "a hexadecimal number beyond decimal", Wrong("0x" + "f" * 4000)
        yield "beyond 64 bits", Wrong(str(2**64))
    if spec.low is not None:
        yield "beyond 64 bits", Wrong(str(-(2**64)))


def _bound_words(spec: Spec) -> str:
    bounds = [bound for bound in (spec.low, spec.above, spec.high, spec.below) if bound is not None]
    return f"{bounds[0]:,}".removesuffix(".0")


def _other_choices(choices: tuple[str, ...], chance: random.Random) -> Iterator[tuple[str, Wrong]]:
    every = tuple(f'"{choice}"' for choice in choices)
    meant = chance.choice(choices)
    for typo in {misspelt(meant, chance), meant.upper(), f"{meant} "} - set(choices):
        yield "misspelt choice", Wrong(f'"{typo}"', said=every, advised=("did you mean",))
    yield "empty choice", Wrong('""', said=every)
    yield "another word", Wrong('"qqqqqqqq"', said=every)
    yield "a look-alike of a choice", Wrong('"' + look_alike(meant) + '"', said=every)


def _wrong_texts(spec: Spec) -> Iterator[tuple[str, Wrong]]:
    candidates = ["", " ", "\n", "\t", "/../ä", "auto\n", "\x1b[31mred", "a" * ((spec.longest or 0) + 1)]
    for text in candidates:
        fits = spec.pattern is None or re.search(spec.pattern.replace("$", r"\Z"), text)
        if not fits or len(text) < spec.shortest or (spec.longest is not None and len(text) > spec.longest):
            yield "text of another form", Wrong(json.dumps(text))


def _wrong_lists(spec: Spec, chance: random.Random) -> Iterator[tuple[str, Wrong]]:
    assert spec.item is not None
    if spec.shortest:
        yield "empty list", Wrong("[]")
    for kind, wrong in wrong_values(spec.item, chance):
        good = [right(spec.item, chance) for _ in range(2)]
        position = chance.randint(0, 2)
        over_lines = chance.random() < 0.5
        items = [*good[:position], (MARK if over_lines else "") + wrong.text, *good[position:]]
        text = "[\n  " + ",\n  ".join(items) + ",\n]" if over_lines else "[" + ", ".join(items) + "]"
        yield f"item: {kind}", replace(wrong, text=text, advised=())


def misspelt(name: str, chance: random.Random) -> str:
    """A name with one letter swapped, dropped, doubled or put in."""
    at = chance.randrange(len(name) - 1)
    ways = [
        name[:at] + name[at + 1] + name[at] + name[at + 2 :],
        name[:at] + name[at + 1 :],
        name[: at + 1] + name[at:],
        name[:at] + chance.choice("aeinrstx") + name[at:],
    ]
    return chance.choice([way for way in ways if way != name])


def look_alike(name: str) -> str:
    """The same to the eye, with a Cyrillic or an accented letter in it."""
    for latin, other in {"e": "е", "a": "а", "o": "о", "p": "р", "c": "с", "i": "і", "s": "ѕ", "x": "х"}.items():
        if latin in name:
            return name.replace(latin, other, 1)
    return name + "\u0301"
