"""YAML, and JSON as the part of YAML that it is: its values, and on which line each key stands.

The text comes from somebody else: no tag makes objects of it, no reference makes more of it than there is, and what
PyYAML's own parsers of values fail on is an error with a line.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from fluxtune.config.positions import KeyPath
from fluxtune.config.settings import shown

_MERGE = "tag:yaml.org,2002:merge"


class YamlError(Exception):
    """A text is no YAML: why, and on which line, if that is known."""

    def __init__(self, reason: str, line: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


class _Loader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """As it is there, but each key once: merges of merges would multiply without bounds."""
        super().flatten_mapping(node)
        node.value = list({_name(key): (key, value) for key, value in node.value}.values())

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As it is there, with an error that has a line where a value is not what its tag says."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            kind = node.tag.rpartition(":")[2]
            message = f"{shown(node.value)} is no {kind}" if isinstance(node, yaml.ScalarNode) else f"this is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from error


def compose(text: str) -> yaml.Node | None:
    """The nodes of a text, None if there are none.

    Raises:
        YamlError: it is no YAML.
    """
    try:
        return yaml.compose(text, _Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"a character that may not stand there ({error.character:#04x})", line) from error
    except yaml.MarkedYAMLError as error:
        raise _told(error) from error
    except (ValueError, OverflowError) as error:
        raise YamlError(str(error), None) from error
    except RecursionError as error:
        raise YamlError("it is nested too deeply", None) from error


def construct(root: yaml.Node | None) -> Any:
    """The values of the nodes of a text.

    Raises:
        YamlError: a value is not what its tag says, or there are tags that make other things than values.
    """
    if root is None:
        return None
    try:
        return _Loader("").construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise _told(error) from error
    except RecursionError as error:
        raise YamlError("it is nested too deeply", None) from error


def lines_of(root: yaml.Node | None) -> tuple[dict[KeyPath, int], list[tuple[KeyPath, int]]]:
    """The line, from 1, of every key and list item, and the keys that are set twice in one table."""
    lines: dict[KeyPath, int] = {}
    twice: list[tuple[KeyPath, int]] = []
    seen: set[int] = set()

    def walk(node: yaml.Node, path: KeyPath) -> None:
        # An alias is the node that it stands for, which may hold itself.
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names = set()
            for key, value in node.value:
                inner, line = (*path, str(key.value)), key.start_mark.line + 1
                if _name(key) in names and key.tag != _MERGE:
                    twice.append((inner, line))
                names.add(_name(key))
                lines[inner] = line
                walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*path, index)] = value.start_mark.line + 1
                walk(value, (*path, index))

    if root is not None:
        walk(root, ())
    return lines, twice


def _name(key: yaml.Node) -> Hashable:
    """What makes a key the same as another one."""
    return (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)


def _told(error: yaml.MarkedYAMLError) -> YamlError:
    mark = error.problem_mark
    return YamlError(error.problem or str(error), None if mark is None else mark.line + 1)
