"""Pretrained networks: one module a family, and `pipeline.networks.backbones.table` to find them by name.

A backbone owns its preprocessing: it is the first layers of the graph, so a network takes raw RGB pixels in 0..255
and nothing downstream can scale them wrongly.
"""
