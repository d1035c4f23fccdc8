"""Put a recipe of docs/recipes.md in place of the one before: the values of params.yaml that it names.

Without a name: list the recipes.
"""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.config import params_file, recipes, schema
from pipeline.console.progress import say
from pipeline.core import params

# A value that takes more than this of a line is shortened: `git diff` shows it whole.
SHOWN = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="which; without one, all are listed")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")


def main(arguments: argparse.Namespace) -> int:
    known = recipes.read()
    if arguments.name is None:
        width = max(map(len, known))
        for recipe in known.values():
            say(f"{recipe.name:<{width}}  {recipe.title}")
        say(f"\nWhat each is good for, and where it comes from: {recipes.PAGE}")
        return 0
    recipe = known.get(arguments.name)
    if recipe is None:
        near = difflib.get_close_matches(arguments.name, known, n=3, cutoff=0.0)
        raise recipes.RecipeError(
            f"There is no recipe {arguments.name!r}. Nearest: {', '.join(near)}; "
            "`python -m pipeline recipe` lists all of them"
        )
    values = params.load()
    committed = _committed()
    if committed is None:
        say("No commit holds params.yaml: what another recipe has left there stays.")
    begun = recipes.start(recipe, values, committed or values, known.values())
    wanted = params_file.replaced(begun, recipes.replacements(recipe, begun))
    # Before anything is written: what the recipe asks for may not fit what else params.yaml says.
    schema.check(wanted)
    changes = recipes.differences(values, wanted)
    say(f"{recipe.name}: {recipe.title}")
    for key, value in changes.items():
        say(f"  {key}: {_shown(params.lookup(values, key))} -> {_shown(value)}")
    if not changes:
        say("  params.yaml says so already")
    elif not arguments.dry_run:
        params_file.override(params.PARAMS_FILE, changes)
        say("params.yaml is written; `git diff params.yaml` shows it, `git checkout params.yaml` takes it back.")
    say("Next: make repro")
    return 0


def _committed() -> Mapping[str, Any] | None:
    """Return what params.yaml says in the last commit, None without git, a commit or the file in it."""
    command = ["git", "show", f"HEAD:./{params.PARAMS_FILE}"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
        found = yaml.safe_load(shown.stdout)
    except (OSError, subprocess.CalledProcessError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and all(isinstance(inner, Mapping) for inner in value.values()):
        value = list(value)  # families, variants: their names say which
    text = json.dumps(value, ensure_ascii=False).replace('"', "")
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
