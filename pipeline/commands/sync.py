"""Add to the MLflow store what it lacks of the records under results/runs."""

from __future__ import annotations

import argparse

from pipeline import params
from pipeline.stages import track


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The store is the one that MLFLOW_TRACKING_URI names, else .mlflow in the project."


def main(arguments: argparse.Namespace) -> int:
    """Return 1 if a person must see to something: two records from the same inputs, or runs not complete yet."""
    report = track.fill(track.collect(params.Params(params.load(), track.READS)))
    return 1 if report.problems else 0
