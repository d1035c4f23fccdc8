"""Make probabilities mean what they say, by what validation saw: maps (`calibrators`) and how to find them (`fitting`).

Apart, because whoever applies a map, such as a served model, needs no library for it.
"""
