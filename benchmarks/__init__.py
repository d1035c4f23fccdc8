"""Measured claims: one module a claim group, each runnable alone with ``python -m benchmarks.NAME``."""
