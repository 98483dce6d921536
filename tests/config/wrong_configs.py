"""Whole command lines with one mistake each: a right configuration, one known mutation, and what must be said of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from wrong_settings import (
    DATE,
    MARK,
    Spec,
    look_alike,
    misspelt,
    quoted,
    right,
    section_paths,
    specs,
    wrong_values,
)

SPECS = list(specs())
SETTINGS = [spec for spec in SPECS if spec.kind != "rows"]
SHARED = [spec for spec in SETTINGS if not spec.in_row]
SECTIONS = list(section_paths())
NAMES = {path[-1] for path in [*(spec.path for spec in SPECS), *SECTIONS]}

BOUND = {
    "training.warmup",
    "training.precision",
    "training.preservation.method",
    "dataset.missing_captions",
    "memory.base_precision",
    "memory.recompute",
    "memory.offload_activations",
    "memory.keep.attention",
    "memory.keep.products",
    "memory.keep.everything",
}
"""Settings that may contradict others: a right configuration has none of them."""

FLAGS = {
    "train": {
        "name": "--name",
        "model.base": "--base",
        "dataset.trigger": "--trigger",
        "dataset.class_word": "--class-word",
        "dataset.resolution": "--resolution",
        "training.steps": "--steps",
        "lora.rank": "--rank",
        "training.learning_rate": "--learning-rate",
        "training.batch_size": "--batch-size",
        "memory.budget": "--vram",
        "training.seed": "--seed",
        "lora.init_from": "--init-from",
    },
    "caption": {
        "captioning.captioner": "--captioner",
        "captioning.existing": "--existing",
        "captioning.prompt": "--prompt",
        "captioning.template": "--template",
        "captioning.precision": "--precision",
        "captioning.batch_size": "--batch-size",
    },
    "sample": {
        "previews.seeds": "--seed",
        "previews.steps": "--steps",
        "previews.guidance": "--guidance",
        "previews.width": "--width",
        "previews.height": "--height",
    },
}
COMMANDS = (
    ("train", "photos"),
    ("train",),
    ("validate", "photos"),
    ("caption", "photos"),
    ("sample", "a house"),
    ("export", "dataset", "photos", "--format", "kohya", "--output", "out"),
)
PRESETLESS = "export"


@dataclass(frozen=True)
class Entry:
    """One ``key = value``. ``wrong`` is how many parts of the key the mistake is named by; 0 for a right one."""

    path: tuple[str, ...]
    text: str
    wrong: int = 0
    row: int | None = None


@dataclass(frozen=True)
class Case:
    """A command line, the files it finds, and what it must say: ``where``, and words of message and hint."""

    kind: str
    arguments: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    where: str = ""
    said: tuple[str, ...] = ()
    advised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mistake:
    """Entries of which one is wrong, or a whole text with a MARK; said and advised as in ``Case``."""

    kind: str
    said: tuple[str, ...]
    entries: tuple[Entry, ...] = ()
    text: str | None = None
    advised: tuple[str, ...] = ()
    set: str | None = None
    """The same mistake as a value of ``--set``."""


def cases(seed: int) -> Iterator[Case]:
    """Endless wrong command lines, each family of mistakes as often as the others."""
    chance = random.Random(seed)
    families: list[Callable[[random.Random], Mistake]] = [
        wrong_value,
        wrong_value,
        wrong_value,
        misspelt_key,
        misspelt_section,
        misplaced_key,
        wrong_structure,
        wrong_syntax,
        set_twice,
    ]
    while True:
        some = [_by_some_way(family(chance), chance) for family in families]
        for case in (*some, by_a_flag(chance), by_set(chance), contradiction(chance)):
            yield replace(case, arguments=(*case.arguments, "--json")) if chance.random() < 0.15 else case


def _by_some_way(mistake: Mistake, chance: random.Random) -> Case:
    """The mistake in one of the files that settings come from, or as `--set`."""
    command = chance.choice(COMMANDS)
    if mistake.set is not None and chance.random() < 0.15:
        return Case(mistake.kind, (*command, "--set", mistake.set), {}, "--set", mistake.said, mistake.advised)
    text = mistake.text if mistake.text is not None else rendered(mistake.entries, chance)
    line = text[: text.index(MARK)].count("\n") + 1
    content = text.replace(MARK, "").encode("utf-8", "surrogateescape")
    if chance.random() < 0.2:
        content = b"\xef\xbb\xbf" + content
    if chance.random() < 0.2:
        content = content.replace(b"\n", b"\r\n")
    ways = [("fluxtune.toml", ()), ("other.toml", ("--config", "other.toml")), ("in/c.toml", ("-c", "in/c.toml"))]
    if command[0] != PRESETLESS:
        ways += [("mine.toml", ("--preset", "./mine.toml")), ("@presets/own.toml", ("--preset", "own"))]
    file, arguments = chance.choice(ways)
    source = arguments[-1] if arguments and arguments[-1] != "own" else file
    where = f"{source}:{line}"
    return Case(mistake.kind, (*command, *arguments), {file: content}, where, mistake.said, mistake.advised)


# A right configuration around the mistake.


def right_entries(chance: random.Random, without: tuple[str, ...] = ()) -> list[Entry]:
    """Some settings with values that they take, and sometimes rows of folders; nothing that begins as ``without``."""
    shared = [spec for spec in SHARED if spec.key not in BOUND and spec.path[: len(without)] != without]
    found = [Entry(spec.path, right(spec, chance)) for spec in chance.sample(shared, chance.randint(0, 8))]
    if without[:1] != ("dataset",) and chance.random() < 0.4:
        found += [entry for row in range(chance.randint(1, 2)) for entry in right_row(chance, row)]
    return found


def right_row(chance: random.Random, row: int) -> list[Entry]:
    keys = [spec for spec in SETTINGS if spec.in_row and spec.path[-1] != "path"]
    some = chance.sample(keys, chance.randint(0, 2))
    return [Entry(("dataset", "folders", "path"), '"photos"', row=row)] + [
        Entry(spec.path, right(spec, chance), row=row) for spec in some
    ]


def rendered(entries: tuple[Entry, ...], chance: random.Random) -> str:
    """TOML in one of its many ways to write the same."""
    tables: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        if entry.row is None:
            tables.setdefault(entry.path[:-1], []).append(entry)
    top = [f"{_key(entry, 0, chance)} = {entry.text}" for entry in tables.pop((), [])]
    blocks = []
    for path, group in sorted(tables.items(), key=lambda each: (len(each[0]), chance.random())):
        nested = any(other != path and other[: len(path)] == path for other in tables)
        one_line = all("\n" not in entry.text for entry in group) and not nested and len(path) == 1
        one_line &= not (path == ("dataset",) and any(entry.row is not None for entry in entries))
        way = chance.choice(["header", "header", "dotted"] + (["inline"] if one_line else []))
        if way == "dotted" and not _is_within(path, tables):
            top += [f"{_key(entry, 0, chance)} = {entry.text}" for entry in group]
        elif way == "inline":
            pairs = ", ".join(f"{_key(entry, len(path), chance)} = {entry.text}" for entry in group)
            top.append(f"{_name(path[-1], chance)} = {{ {pairs} }}")
            if any(entry.wrong and entry.wrong <= len(path) for entry in group):
                top[-1] = MARK + top[-1]
        else:
            header = "[" + ".".join(_name(part, chance) for part in path) + "]"
            wrong = any(entry.wrong and entry.wrong <= len(path) for entry in group)
            lines = [f"{_key(entry, len(path), chance)} = {entry.text}" for entry in group]
            blocks.append("\n".join([MARK * wrong + header, *lines]))
    rows = [entry for entry in entries if entry.row is not None]
    for row in sorted({entry.row for entry in rows if entry.row is not None}):
        group = [entry for entry in rows if entry.row == row]
        blocks.append("\n".join(["[[dataset.folders]]", *(f"{_key(e, 2, chance)} = {e.text}" for e in group)]))
    return _with_air([*top, *blocks], chance)


def _is_within(path: tuple[str, ...], tables: dict[tuple[str, ...], list[Entry]]) -> bool:
    """Whether dotted keys of the table would meet a header around it, which TOML forbids."""
    return any(other != path and (other[: len(path)] == path or path[: len(other)] == other) for other in tables)


def _with_air(blocks: list[str], chance: random.Random) -> str:
    lines = []
    for block in blocks:
        lines += [chance.choice(["", "# a comment = [1", '  # "'])] * chance.randint(0, 2)
        lines.append(block)
    return "\n".join(lines) + chance.choice(["", "\n", "  # the end\n"])


def _key(entry: Entry, start: int, chance: random.Random) -> str:
    """The key of an entry, from one of its parts on; MARKed if the mistake is named by it."""
    parts = [_name(part, chance) for part in entry.path[start:]]
    marked = entry.wrong > start and MARK not in entry.text
    return MARK * marked + chance.choice([".", ".", " . "]).join(parts)


def _name(part: str, chance: random.Random) -> str:
    bare = part.isascii() and part.replace("_", "").replace("-", "").isalnum()
    if "\\" in part:
        return f'"{part}"'
    return quoted(part, chance) if not bare or chance.random() < 0.1 else part


# The mistakes.


def wrong_value(chance: random.Random) -> Mistake:
    spec = chance.choice(SPECS)
    kinds = dict(wrong_values(spec, chance))
    kind = chance.choice(list(kinds))
    wrong = kinds[kind]
    entry = Entry(spec.path, wrong.text, wrong=len(spec.path), row=0 if spec.in_row else None)
    others = right_entries(chance, without=("dataset",) if spec.path[0] == "dataset" else spec.path)
    if spec.in_row:
        others += [Entry(("dataset", "folders", "path"), '"photos"', row=0)] if spec.path[-1] != "path" else []
    by_set = None
    if not spec.in_row and spec.kind != "str" and not spec.also_choices and "\n" not in wrong.text:
        by_set = f"{spec.key}={wrong.text}"
    said = (spec.key, "wanted ", *wrong.said)
    return Mistake(kind, said, _mixed(others, entry, chance), advised=wrong.advised, set=by_set)


def misspelt_key(chance: random.Random) -> Mistake:
    spec = chance.choice(SETTINGS)
    name, way = spec.path[-1], chance.choice(["typo", "case", "kebab", "camel", "look-alike", "control"])
    camel = "".join(part.title() if at else part for at, part in enumerate(name.split("_")))
    spelt = {
        "typo": misspelt(name, chance),
        "case": chance.choice([name.upper(), name.title()]),
        "kebab": name.replace("_", "-"),
        "camel": camel,
        "look-alike": look_alike(name),
        "control": name + "\\u001b\\u0007",
    }[way]
    if spelt in NAMES:
        return misspelt_key(chance)
    advised = ("did you mean",) if way != "typo" else ()
    shown = spelt if way not in ("control",) else name
    entry = Entry((*spec.path[:-1], spelt), right(spec, chance), len(spec.path), 0 if spec.in_row else None)
    others = right_entries(chance, without=("dataset",) if spec.path[0] == "dataset" else spec.path)
    if spec.in_row:
        others.append(Entry(("dataset", "folders", "path"), '"photos"', row=0))
    return Mistake(f"misspelt key: {way}", ("unknown setting", shown), _mixed(others, entry, chance), advised=advised)


def misspelt_section(chance: random.Random) -> Mistake:
    path = chance.choice(SECTIONS)
    spec = chance.choice([spec for spec in SHARED if spec.path[:-1] == path])
    way = chance.choice(["typo", "case", "look-alike"])
    spelt = {"typo": misspelt, "case": lambda name, _: name.title(), "look-alike": lambda name, _: look_alike(name)}
    name = spelt[way](path[-1], chance)
    if name in NAMES:
        return misspelt_section(chance)
    entry = Entry((*path[:-1], name, spec.path[-1]), right(spec, chance), len(path))
    others = right_entries(chance, without=path[:1])
    said = ("unknown setting", ".".join((*path[:-1], name)) if name.isascii() else name)
    return Mistake(f"misspelt section: {way}", said, _mixed(others, entry, chance), advised=("did you mean",))


def misplaced_key(chance: random.Random) -> Mistake:
    spec = chance.choice(SETTINGS)
    elsewhere = [path for path in [(), *SECTIONS] if (*path, spec.path[-1]) not in {each.path for each in SPECS}]
    path = (*chance.choice(elsewhere), spec.path[-1])
    if path in SECTIONS:
        return misplaced_key(chance)
    entry = Entry(path, right(spec, chance), len(path))
    others = right_entries(chance, without=path[:1])
    said = (f"unknown setting {'.'.join(path)}",)
    by_set = f"{'.'.join(path)}=1"
    return Mistake("misplaced key", said, _mixed(others, entry, chance), advised=(spec.key,), set=by_set)


def wrong_structure(chance: random.Random) -> Mistake:
    """Tables where a value should be, and the other way round."""
    path, spec = chance.choice(SECTIONS), chance.choice(SHARED)
    section, key = ".".join(path), spec.key
    value = chance.choice(["5", "'text'", "true", "[1]", "[]", DATE, "nan", "[[[]]]"])
    head = "# a comment\n" * chance.randint(0, 3)
    deep = "".join("{ a = " for _ in range(50)) + "1" + " }" * 50
    texts: list[tuple[str, tuple[str, ...], str]] = [
        ("a section that is a value", (section, "section"), f"{MARK}{section} = {value}\n"),
        ("a section as a list", (section, "section"), f"{MARK}[[{section}]]\n{spec.path[-1]} = 1\n"),
        ("a setting as a section", (key, "wanted"), f"{MARK}[{key}]\nvalue = 1\n"),
        ("a setting as rows", (key, "wanted"), f"{MARK}[[{key}]]\nvalue = 1\n"),
        ("a key below a setting", (key, "wanted"), f"{MARK}{key}.max = 1\n"),
        ("deep tables", (key, "wanted"), f"{MARK}{key} = {deep}\n"),
        ("rows as a section", ("dataset.folders", "[[dataset.folders]]"), f"{MARK}[dataset.folders]\npath = 'a'\n"),
        ("a row that is text", ("dataset.folders",), f"dataset.folders = [\n{{ path = 'a' }},\n{MARK}'photos',\n]\n"),
        ("a row that is no table", ("dataset.folders",), f"[dataset]\n\n{MARK}folders = [{value}]\n"),
        ("a row without a path", ("dataset.folders", "path"), f"{MARK}[[dataset.folders]]\nrepeats = 2\n"),
        ("a row without anything", ("path",), f"[[dataset.folders]]\npath = 'a'\n\n{MARK}[[dataset.folders]]\n"),
        (
            "an unknown key in an inline row",
            ("dataset.folders.repeat",),
            f"[dataset]\nfolders = [\n  {{ path = 'a' }},\n  {MARK}{{ path = 'b', repeat = 2 }},\n]\n",
        ),
        ("a dotted key in quotes", ("unknown setting" if "." in key else key,), f'{MARK}"{key}" = 1\n'),
        ("an empty key", ("unknown setting", '""'), f'[{section}]\n{MARK}"" = 1\n'),
        ("null", ("value",), f"{MARK}{key} = {chance.choice(['null', 'None', 'nil', '', '~', '-', 'undefined'])}\n"),
    ]
    kind, said, text = chance.choice(texts)
    if kind.startswith("a row that is no table") and value == "[]":
        value = "5"
    return Mistake(kind, said, text=head + text)


def wrong_syntax(chance: random.Random) -> Mistake:
    """What no TOML parser takes, told with the line that it is on, or that it begins on."""
    spec = chance.choice([spec for spec in SHARED if spec.path[:-1]])
    table, name = ".".join(spec.path[:-1]), spec.path[-1]
    before = f"# first\n[{table}]  # header\n\n"
    after = chance.choice(["", "\n[lora]\nrank = 4\n", "\n# the end\n"]) if table != "lora" else ""
    bad = {
        "an open quote": f'{name} = "words',
        "an open apostrophe": f"{name} = 'words",
        "no equals sign": f"{name} 5",
        "a colon": f"{name}: 5",
        "a key alone": name,
        "no value": f"{name} =",
        "two values": f"{name} = 5 6",
        "a word without quotes": f"{name} = sixteen",
        "a bad escape": f'{name} = "C:\\pictures"',
        "a bad number": f"{name} = 1__0",
        "a leading zero": f"{name} = 016",
        "a comma for a point": f"{name} = 0,5",
        "a number too long": f"{name} = " + "9" * 5000,
        "a capital switch": f"{name} = True",
        "a control character": f"{name} = \x01",
        "a control character in text": f'{name} = "a\x1b[31m"',
        "a space in a key": f"my {name} = 5",
        "an open header": f"[{table}",
        "a header with a comma": f"[{table},]",
        "an open inline table": f"{name} = {{ a = 1",
        "a list with two commas": f"{name} = [1,,2]",
        "an unquoted key that is no name": f"ключ_{name} = 5",
        "a typographic quote": f"{name} = “words”",
        "a date that is none": f"{name} = 2024-13-45",
        "no UTF-8": f"{name} = \udcff",
    }
    kind = chance.choice([*bad, "an open list", "an open long text"])
    if kind == "an open list":
        return Mistake(kind, (), text=f"{before}{MARK}{name} = [\n  1,\n  2,\n", advised=(name,))
    if kind == "an open long text":
        return Mistake(kind, (), text=f'{before}{MARK}{name} = """\nwords\nmore\n{after}', advised=(name,))
    named = (table.split(".")[0],) if "header" in kind else (name,)
    return Mistake(kind, (), text=f"{before}{MARK}{bad[kind]}\n{after}", advised=named)


def set_twice(chance: random.Random) -> Mistake:
    """One key or section in two ways, told at the second."""
    spec = chance.choice([spec for spec in SHARED if len(spec.path) == 2])
    section, name = spec.path
    value = right(spec, chance)
    pair = f"{name} = {value}"
    texts = {
        "a key twice": f"[{section}]\n{pair}\n{MARK}{pair}\n",
        "a key twice, once in quotes": f'[{section}]\n{pair}\n\n{MARK}"{name}" = {value}\n',
        "a section twice": f"[{section}]\n{pair}\n\n{MARK}[{section}]\n",
        "a section and a dotted key": f"{section}.{pair}\n\n{MARK}[{section}]\n{pair}\n",
        "an inline table that goes on": f"{section} = {{ {pair} }}\n{MARK}{section}.other = 5\n",
        "an inline table and a section": f"{section} = {{ {pair} }}\n\n{MARK}[{section}]\n{pair}\n",
        "a key twice in an inline table": f"\n{MARK}{section} = {{ {pair}, {pair} }}\n",
        "a value and a section": f"{section} = 5\n\n{MARK}[{section}.{name}]\n",
        "rows and a section": f"[[dataset.folders]]\npath = 'a'\n\n{MARK}[dataset.folders]\npath = 'b'\n",
        "a section and rows": f"[{section}]\n{pair}\n{MARK}[[{section}]]\n{pair}\n",
    }
    kind = chance.choice(list(texts))
    return Mistake(kind, ("twice",), text=texts[kind])


def by_a_flag(chance: random.Random) -> Case:
    """A wrong value of a flag that sets one setting."""
    command = chance.choice(list(FLAGS))
    key = chance.choice(list(FLAGS[command]))
    spec = next(spec for spec in SPECS if spec.key == key)
    spec = spec.item if spec.kind == "list" and spec.item is not None else spec
    texts = [] if spec.kind in ("str", "choice") else ["much", "", "true", "1.5.2", "[1]", "{a = 1}", DATE, "'16'"]
    for _, wrong in wrong_values(spec, chance):
        if spec.kind in ("str", "choice"):
            if wrong.text.startswith('"') and "\\" not in wrong.text:
                texts.append(wrong.text[1:-1])
        elif wrong.text[0] not in "'\"":
            texts.append(wrong.text)
    texts = [text for text in texts if not (spec.kind == "str" and text == "" and spec.key == "name")]
    if spec.kind == "str" and not spec.pattern:
        texts = [""]
    elif spec.kind == "str":
        texts = [text for text in texts if not _fits(spec, text)]
    flag = FLAGS[command][key]
    more = {"sample": ("a house",)}.get(command, ("photos",))
    text = chance.choice(texts or [""])
    return Case("flag", (command, *more, f"{flag}={text}"), {}, flag, (key, "wanted"))


def _fits(spec: Spec, text: str) -> bool:
    import re

    fits = re.search((spec.pattern or "").replace("$", r"\Z"), text)
    return bool(fits) and (spec.longest is None or len(text) <= spec.longest)


def by_set(chance: random.Random) -> Case:
    """A `--set` that sets nothing, or something that there is not."""
    spec = chance.choice(SHARED)
    key, name, section = spec.key, spec.path[-1], ".".join(spec.path[:-1])
    typo = misspelt(name, chance)
    texts = {
        key: (key,),
        f"{key} 5": (key,),
        f"{key}:5": (key,),
        "=5": ("=5",),
        f".{key}=5": (key,),
        f"{key}.=5": (key,),
        f"{key[:-1]} {key[-1]}=5": (key[:-1],),
        f"{key}.deeper=5": (key, "wanted"),
        f"[{key}]=5": (key,),
        f"[{section}]\n{name}=5": (section,),
        ".".join(spec.path[:-1]) + "=5" if spec.path[:-1] else "lora=5": ("section",),
    }
    if section:  # a key of one part may be in quotes
        texts[f'"{key}"=5'] = ("unknown setting", key)
    if typo not in NAMES:
        texts[".".join((*spec.path[:-1], typo)) + "=5"] = ("unknown setting", typo)
    if spec.kind not in ("str",) and not spec.also_choices:
        texts[f"{key}=" + "9" * 5000] = (key, "wanted")
        texts[f"{key}=" + "[" * 3000 + "]" * 3000] = (key, "wanted")
        texts[f"{key}=" + "{a=" * 500 + "1" + "}" * 500] = (key, "wanted")
    if spec.kind in ("int", "float") and (spec.high or spec.below):
        texts[f"{key}=0x" + "f" * 9000] = (key, "wanted")
    text = chance.choice(list(texts))
    command = chance.choice(COMMANDS)
    return Case("--set", (*command, "--set", text), {}, "--set", texts[text])


CONTRADICTIONS: dict[str, tuple[str, ...]] = {
    "dataset.missing_captions = 'trigger'": ("dataset.missing_captions", "dataset.trigger"),
    "training.warmup = 2000": ("training.warmup", "training.steps"),
    "training.precision = 'fp32'": ("training.precision", "memory.base_precision"),
    "memory.recompute = 'none'\nmemory.keep.attention = [1]": ("memory.recompute", "memory.keep.attention"),
    "memory.recompute = 'none'\nmemory.offload_activations = true": ("memory.recompute", "memory.offload_activations"),
    "training.preservation.method = 'prior'": ("training.preservation.method", "dataset.class_word"),
    "dataset.class_word = 'dog'\ntraining.preservation.method = 'output'": (
        "training.preservation.method",
        "dataset.trigger",
    ),
}
"""Settings that are each right -> the keys that the message must name; the first of them is where it is told."""


def contradiction(chance: random.Random) -> Case:
    text = chance.choice(list(CONTRADICTIONS))
    keys = CONTRADICTIONS[text]
    lines = text.split("\n")
    head = "# a comment\n" * chance.randint(0, 3)
    if chance.random() < 0.4:
        sets = [part for line in lines for part in ("--set", line.replace(" ", ""))]
        return Case("contradiction", ("train", "photos", *sets), {}, "--set", keys)
    key = keys[0]
    line = head.count("\n") + next(at for at, each in enumerate(lines, start=1) if each.startswith(key))
    return Case(
        "contradiction", ("train", "photos"), {"fluxtune.toml": (head + text).encode()}, f"fluxtune.toml:{line}", keys
    )


def _mixed(others: list[Entry], entry: Entry, chance: random.Random) -> tuple[Entry, ...]:
    at = chance.randint(0, len(others))
    return (*others[:at], entry, *others[at:])
