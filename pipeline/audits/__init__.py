"""Judgements of a finished pipeline: reproducibility, fairness and health. No stage needs this folder."""
