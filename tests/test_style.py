"""All code is written in one style, as pyproject.toml sets it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", [("check", "--no-cache"), ("format", "--check", "--no-cache")])
def test_the_code_is_written_in_one_style(root, command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
