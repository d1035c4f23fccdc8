"""Keras networks: pretrained ones, small ones without pretraining, and what is known of a network without data."""
