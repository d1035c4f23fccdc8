"""Values of params.yaml replaced at dotted keys: of its contents, or in the file, whose other text stays as it is.

The file is edited as text, at the places where a parser finds the values. YAML libraries that write a document again
hold a comment to be part of the value before it, so that a replaced list took the comment and the blank line after it
along.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.core import artifacts
from pipeline.core.params import ParamsError, load, lookup, unknown_key

ENDLESS = 1 << 30  # characters of a line: no value is folded


def replaced(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the contents of a params file, with the values at dotted keys replaced.

    Raises ParamsError for a key that is not there.
    """
    result = copy.deepcopy(dict(values))
    for key, value in overrides.items():
        parent, _, name = key.rpartition(".")
        block = lookup(result, parent) if parent else result
        if not isinstance(block, Mapping) or name not in block:
            raise ParamsError(unknown_key(name, block if isinstance(block, Mapping) else (), where=parent))
        block[name] = value
    return result


def override(path: Path, overrides: Mapping[str, Any]) -> None:
    """Replace values of a params file at dotted keys and keep every other character of it.

    A list or block that spans lines is written in lines again, anything else in one, so that a comment behind it stays
    there. Raises ParamsError for an unknown key, and for a value that stands elsewhere, as behind an alias; then the
    file is as it was.
    """
    wanted = replaced(load(path), overrides)
    text = path.read_text(encoding="utf-8")
    try:
        for key, value in overrides.items():
            text = _with_value(text, key.split("."), value)
        written = yaml.safe_load(text)
    except yaml.YAMLError:  # an alias of what was replaced
        written = None
    if written != wanted:
        raise ParamsError(f"{path}: {', '.join(overrides)} cannot be replaced in this text: change the file by hand")
    artifacts.write_text(path, text)


def _with_value(text: str, parts: Sequence[str], value: Any) -> str:
    """Return YAML text with another value at a key; unchanged if the key does not stand in the text."""
    key, node = None, yaml.compose(text, Loader=yaml.SafeLoader)
    for part in parts:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        key, node = next(((name, found) for name, found in pairs if name.value == part), (None, None))
        if key is None:
            return text
    start, end = node.start_mark.index, _end(node)
    if not _spans_lines(node):
        space = "" if text[:start].endswith(" ") else " "  # `key:` without a value is null, too
        return text[:start] + space + _in_one_line(value) + text[end:]
    if value and isinstance(value, list if isinstance(node, yaml.SequenceNode) else Mapping):
        return text[:start] + _in_lines(value, node.start_mark.column) + text[end:]
    colon = text.index(":", key.end_mark.index) + 1
    line, rest = text.rindex("\n", 0, start) + 1, text[end:]
    # What stands behind the last of the lines that go, a comment, keeps a line of its own.
    rest = rest.partition("\n")[2] if not rest.partition("\n")[0].strip() else text[line:start] + rest.lstrip(" ")
    return f"{text[:colon]} {_in_one_line(value)}{text[colon:line]}{rest}"


def _spans_lines(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _end(node: yaml.Node) -> int:
    """Return where a value ends; the parser lets a block end only where the next key begins, behind all comments."""
    while _spans_lines(node):
        last = node.value[-1]
        node = last[1] if isinstance(node, yaml.MappingNode) else last
    return node.end_mark.index


def _in_one_line(value: Any) -> str:
    dumped = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, sort_keys=False, width=ENDLESS)
    return dumped.rstrip("\n")[1:-1]


def _in_lines(value: Sequence[Any] | Mapping[str, Any], column: int) -> str:
    if isinstance(value, Mapping):
        dumped = yaml.safe_dump(value, default_flow_style=None, allow_unicode=True, sort_keys=False, width=ENDLESS)
        lines = dumped.splitlines()
    else:
        lines = [f"- {_in_one_line(item)}" for item in value]
    return ("\n" + " " * column).join(lines)
