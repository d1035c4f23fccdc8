"""Print the comparison that the last `dvc repro` wrote, or write it into a document."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.console.errors import BakeoffError
from pipeline.core import artifacts, params
from pipeline.evaluation import leaderboard
from pipeline.show import calibration_table, ensemble_table, leaderboard_tables

BEGIN = "<!-- leaderboard -->"
END = "<!-- /leaderboard -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--readme", type=Path, metavar="FILE", help=f"renew the table between {BEGIN} and {END}")


def main(arguments: argparse.Namespace) -> int:
    entries = artifacts.read_json(artifacts.LEADERBOARD)
    if arguments.readme is None:
        ensemble = artifacts.read_json(leaderboard.DETAILS).get("ensemble")
        tables = [leaderboard_tables.text(entries), calibration_table.text(entries), ensemble_table.text(ensemble)]
        print("\n\n".join(filter(None, tables)))
        return 0
    document = arguments.readme.read_text(encoding="utf-8")
    confidence = params.lookup(params.load(), "compare.confidence")
    table = leaderboard_tables.short_markdown(entries, confidence=confidence)
    artifacts.write_text(arguments.readme, with_table(document, table))
    print(f"{arguments.readme}: table renewed from {artifacts.LEADERBOARD}")
    return 0


def with_table(document: str, table: str) -> str:
    """Return the document with ``table`` between its two markers. Raises BakeoffError unless it has both, once."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise BakeoffError(f"The document must hold {BEGIN} and, after it, {END}, once each")
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}"
