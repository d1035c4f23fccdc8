"""Print the comparison that the last `dvc repro` wrote."""

from __future__ import annotations

import argparse

from pipeline import artifacts, leaderboard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes none."""


def main(arguments: argparse.Namespace) -> int:
    print(leaderboard.leaderboard_text(artifacts.read_json(artifacts.LEADERBOARD)))
    return 0
