"""Keras training: a head on a frozen network, staged fine-tuning, networks from scratch.

A pretrained network always runs in inference mode: its Dropout is off and its BatchNormalization uses the moving
statistics, also in the layers that fine-tuning unfreezes. `cutting` sees to it, because Keras does not: in a functional
model, ``trunk(inputs, training=False)`` is overridden by the ``training=True`` that ``fit`` passes down
(docs/decisions/0003).
"""
