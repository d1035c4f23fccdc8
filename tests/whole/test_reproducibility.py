"""docs/reproducibility.md promises nothing that no test holds."""

from __future__ import annotations

import ast
import re


def test_every_promise_names_a_test_that_exists(root):
    text = (root / "docs" / "reproducibility.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    assert len(named) > 15
    for file, name in named:
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file} has no {name}"


def test_every_row_of_a_promise_names_a_test(root):
    text = (root / "docs" / "reproducibility.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and not re.match(r"\|[\s|:-]*\|$", line)]
    promised = [row for row in rows if "not promised" not in row and not re.match(r"\| (what|with)", row)]
    assert len(promised) > 12
    for row in promised:
        assert "::test_" in row or "the same test" in row, row
