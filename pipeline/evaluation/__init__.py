"""Saved predictions to numbers: metrics, intervals, calibration, ensembles and the comparison."""
