"""Remove the feature store: what frozen networks made of images is computed anew when it is needed next."""

from __future__ import annotations

import argparse

from pipeline.features import feature_store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def main(arguments: argparse.Namespace) -> int:
    store = feature_store.from_environment()
    removed = store.clear()
    print(f"{store.directory}: {removed / 1e6:,.0f} MB removed")
    return 0
